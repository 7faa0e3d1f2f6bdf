"""Writes a trained model for others to run, and proves that it is the one that was trained."""
