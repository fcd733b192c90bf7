"""Benchmarks: what communication costs, compared with other ways to learn together. No run needs them."""
