"""Benchmarks print ratios, paired in one run; they are no tests."""
