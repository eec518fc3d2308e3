"""xtrimogene.training.synergy."""
