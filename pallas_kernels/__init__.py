"""Attention kernels: arrays in, arrays out. They know nothing of videos."""
