"""Files of a run: atomic writes, the run folder and its lock, records of rows, the environment."""
