"""Attention kernels in Pallas: arrays in, arrays out, independent of videos and models."""
