"""Studies of whole runs: what a choice in training does to the result, against the same baselines."""
