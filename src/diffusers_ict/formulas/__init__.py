"""Formulas of the papers: torch and the standard library only."""
