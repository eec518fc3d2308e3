"""Metrics and baselines, which know no model: arrays in, numbers out.

Begin with `results.py`, a score with its interval, as all tasks return it. `metrics.py`, `probes.py`, `certainty.py`,
`recovery.py`, `perturbation.py` and `synergy.py` score predictions; `baselines.py` holds what a model has to beat.
"""
