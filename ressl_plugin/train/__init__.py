"""One training: from a config to a run directory, with its callbacks."""
