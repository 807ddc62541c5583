"""Decoding over a bi-level memory without moving it. (The kernels come with the Pallas work; until
then decoding attends to an assembled cache through `pallas_kernels.attention`.)"""
