"""Weights in and out: the original's Hugging Face directories, and our own native ones."""
