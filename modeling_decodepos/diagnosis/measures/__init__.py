"""What is measured of features, one file per question."""
