"""One module per benchmark: `add_arguments`, `DEFAULTS` on an accelerator and on a CPU, and `run`."""
