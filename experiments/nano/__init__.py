"""Generated video clips and questions for training and testing the tiny model "nano"."""
