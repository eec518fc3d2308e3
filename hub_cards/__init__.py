"""xtrimogene.hub_cards."""
