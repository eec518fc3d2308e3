"""xtrimogene.inference."""
