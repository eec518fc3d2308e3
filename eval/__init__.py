"""How good a model is, beside simple methods and controls; `eval/README.md` describes every protocol.

Begin with `evaluate.py`, which runs tasks by name and writes a report. `tasks/` holds the protocols, `measures/`
metrics and baselines, `report/` pages and pictures, `cost/` what a model takes, `metric_modules/` metrics for
`evaluate`.
"""
