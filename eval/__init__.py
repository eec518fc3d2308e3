"""Judging a model: `metrics`, the `baselines` beside it, `pictures`, and what it costs (`flops`)."""
