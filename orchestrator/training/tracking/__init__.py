"""The numbers of a training phase and where they go: the curve, TensorBoard, W&B and MLflow.

`PhaseLog` writes them during training; `attach_report` adds the report at the end of a run. W&B and MLflow share the
protocol `Tracker`. This package imports configuration, storage, engine and evaluation; torch is imported only by
`phase_log` and, when it is used, by TensorBoard's writer."""
