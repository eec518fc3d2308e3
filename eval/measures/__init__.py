"""Metrics and baselines without a model: arrays in, numbers out.

Begin with `results.py`: all tasks return its scores with intervals. `metrics.py`, `certainty.py`, `recovery.py`,
`perturbation.py` and `synergy.py` score predictions; `probes.py`, `controls.py`, `consistency.py`, `representation.py`
and `relations.py` score embeddings; `baselines.py` holds what a model has to beat.
"""
