"""Training: conversations about videos in, a model out; every part of it can be cut off and resumed."""
