"""What results are shown on: pages of one file, and sheets of pictures."""
