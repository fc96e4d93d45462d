"""Looks into a float network and changes it."""
