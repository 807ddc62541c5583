"""Prompts and tokenisation."""
