"""What `train.py` is made of: data in memory, the trainer, checkpoints, and what a run reports."""
