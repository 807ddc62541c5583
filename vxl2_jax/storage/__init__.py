"""Files on disk: memory files of checksummed records, file locks, and JSON Lines."""
