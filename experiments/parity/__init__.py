"""The parts of check_parity.py: one module per file of a golden directory."""
