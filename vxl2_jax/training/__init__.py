"""Training: conversations about videos in, a model out. A run can be interrupted at any point and resumed."""
