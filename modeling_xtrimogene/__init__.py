"""xtrimogene.modeling_xtrimogene."""
