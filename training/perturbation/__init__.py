"""Learning what perturbing genes does to cells.

Begin with `fit.py`. `screens.py` reads measured perturbations and splits them, `gene_graphs.py` gathers what is known
of the genes. The model is `modeling_xtrimogene/modeling_perturbation.py`.
"""
