"""Training: the stage (`stage.py`), its driver and workers, and the order in which they read pairs.

Imports `evaluation` and the layers below it. No code here: reading tasks import `reader`, which must not load torch."""
