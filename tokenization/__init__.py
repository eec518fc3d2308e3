"""xtrimogene.tokenization."""
