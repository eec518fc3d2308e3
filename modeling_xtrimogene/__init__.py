"""The models. Files that are saved beside a checkpoint import only each other, torch and transformers.

Begin with `configuration_xtrimogene.py`, every number of the model, and `modeling_xtrimogene.py`, which follows the
paper. `value_embedding_`, `attention_`, `favor_` and `heads_xtrimogene.py` are its parts; `packed_`, `gene_rows_` and
`precision_xtrimogene.py` make it fast. `xpressor_xtrimogene.py` reconstructs cells from latents, and
`criss_cross_xtrimogene.py` is another attention of the encoder: both are off unless asked for.
`modeling_perturbation.py` predicts the effects of perturbed genes, and `modeling_synergy.py` the synergy of drugs.
"""
