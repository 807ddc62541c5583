"""Range attention: every query attends to one contiguous range of keys in each of a few streams."""

from pallas_kernels.attention.reference import Stream, attend, key_mass

__all__ = ["Stream", "attend", "key_mass"]
