"""Work over many runs: sweeps, combined adapters, transfer between tasks, comparison of runs."""
