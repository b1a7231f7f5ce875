"""What a release on the Hub consists of, checked and uploaded: `python -m training.publish`."""
