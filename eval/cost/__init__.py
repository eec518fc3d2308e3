"""xtrimogene.eval.cost."""
