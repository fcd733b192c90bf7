"""Runs on more than one machine: containers, clusters, and the collector of their reports."""
