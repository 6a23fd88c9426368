"""Faults, one kind a file, and what a run must be like after each of them. See ../torture.py."""
