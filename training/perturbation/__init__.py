"""xtrimogene.training.perturbation."""
