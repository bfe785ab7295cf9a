"""What `train.py` is made of: checks, methods, model, data, trainer, checkpoints, export, and what a run reports."""
