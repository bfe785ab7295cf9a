"""What every stage shares: configuration, command lines, run folders, models, progress."""
