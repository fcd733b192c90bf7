"""Faults and attacks on real peers."""
