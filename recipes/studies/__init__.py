"""Studies that compare choices in training by whole runs, beside the same baselines."""
