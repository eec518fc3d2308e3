"""Benchmarks against the reference procedure; `python -m xtrimogene.eval.cost.benchmarks --help`."""
