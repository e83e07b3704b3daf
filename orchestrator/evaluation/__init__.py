"""Evaluation of models: the stage (`stage.py`), the sets (`sets.py`), their images through the models (`embed.py`).

Imports `selection` and the layers below it. No code here: a plan imports `stage`, which must not load torch."""
