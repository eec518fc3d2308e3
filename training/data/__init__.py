"""xtrimogene.training.data."""
