"""Attention kernels in Pallas: arrays in, arrays out, independent of videos and models.

    attention   range attention: every query attends to one contiguous range of keys in each of a few streams
    decode      the same over segments of a cache, each with a position shift, read in place
    kv_cache    the cache that all kernels read

docs/how-to/kernel.md says how to add a kernel.
"""
