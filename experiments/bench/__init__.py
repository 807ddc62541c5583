"""Benchmarks of attention, decoding, the vision tower and watching: see `python -m experiments.bench --help`."""
