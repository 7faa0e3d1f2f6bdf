"""What every package shares: types, errors, the trace grammar, answer comparison, statistics, progress."""
