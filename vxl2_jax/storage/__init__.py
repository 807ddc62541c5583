"""Memories on disk: checksummed records, written as a video is watched, read where a question needs them."""
