"""Benchmarks: each prints ratios to a named reference that is measured in the same run."""
