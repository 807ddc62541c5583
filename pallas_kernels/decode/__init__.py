"""Decoding over a bi-level memory without moving it. The assembled cache is the reference."""

from pallas_kernels.decode.in_place import Reads, attend, items_of, prepare
from pallas_kernels.decode.runs import Items, Runs, cut, united

__all__ = ["Items", "Reads", "Runs", "attend", "cut", "items_of", "prepare", "united"]
