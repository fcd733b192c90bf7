"""Runs on more than one machine: containers, clusters, and who collects their reports."""
