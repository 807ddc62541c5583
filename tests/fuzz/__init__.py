"""Random input for everything that reads what users write: an error of the package in one line, or a right result."""
