"""Objectives: what a training step minimises, one file for each method."""
