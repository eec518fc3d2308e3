"""xtrimogene.eval.tasks."""
