"""Processes, seeds and the user's own code."""
