"""SmolLM2-135M-Instruct (Apache-2.0), a small language model with real weights: its file, and what is in it."""
