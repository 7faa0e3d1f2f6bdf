"""Writes a trained model for other programs, and verifies that the files are the model that was trained."""
