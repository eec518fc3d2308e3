"""xtrimogene.eval."""
