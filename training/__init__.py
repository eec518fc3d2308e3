"""xtrimogene.training."""
