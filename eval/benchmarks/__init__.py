"""Benchmarks against the reference procedure; `python -m xtrimogene.eval.benchmarks --help`."""
