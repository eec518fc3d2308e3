"""xtrimogene.eval.measures."""
