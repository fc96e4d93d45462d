"""Epochs, and what a training needs around them."""
