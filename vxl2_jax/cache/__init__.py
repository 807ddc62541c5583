"""The key/value cache that a question reads: which level of which chunk, and where it lies."""
