"""What a training run needs around the objectives. Needs the extra `train`."""
