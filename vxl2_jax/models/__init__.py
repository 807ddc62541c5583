"""The networks as Flax linen modules: parameters and arrays in, arrays out. No file access here."""
