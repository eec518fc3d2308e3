"""Learning how two drugs act together in a cell line.

Begin with `fit.py`. `measurements.py` reads scores and splits them, `drugs.py` computes features of drugs,
`cell_lines.py` embeds cell lines. The model is `modeling_xtrimogene/modeling_synergy.py`.
"""
