"""Loaded models behind two protocols; see `base`."""
