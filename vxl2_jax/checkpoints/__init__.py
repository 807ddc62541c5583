"""Loading and saving checkpoints: the original's Hugging Face directories, and native ones."""
