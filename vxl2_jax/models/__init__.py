"""The networks, as Flax linen modules: parameters in, arrays out. They know nothing of files."""
