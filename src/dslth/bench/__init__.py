"""Benchmarks: what communication costs, beside other ways to learn together. Nothing here is part of a run."""
