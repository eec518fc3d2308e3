"""xtrimogene.recipes."""
