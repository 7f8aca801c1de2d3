"""Benchmarks: this package beside its peers on the same rows, checked before they are timed."""
