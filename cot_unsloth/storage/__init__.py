"""Files on disk: the run folder and its lock, atomic writes, rows as JSON Lines, and the environment of a measurement."""
