"""Training runs: recipes, networks, checkpoints, averages and logs. Needs the extra `train`."""
