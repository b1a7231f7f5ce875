"""What `python -m training.publish` is made of: facts, numbers, folders, checks."""
