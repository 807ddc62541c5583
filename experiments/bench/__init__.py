"""What the benchmarks share: machine, measuring, ceilings, counts, baselines, tables, plots."""
