"""xtrimogene.eval.report."""
