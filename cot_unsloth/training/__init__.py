"""A training run from data to report, and the methods that train."""
