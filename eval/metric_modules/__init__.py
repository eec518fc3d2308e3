"""Metrics as modules of the library `evaluate`, loaded from this folder without a network.

    >>> import evaluate
    >>> from xtrimogene.eval import metric_modules
    >>> metric = evaluate.load(f"{metric_modules.__path__[0]}/cell_type_annotation")
    >>> metric.compute(predictions=["B", "T"], references=["B", "NK"])["accuracy"]
    0.5

`cell_type_annotation`  `masked_expression`  `perturbation_response`  `embedding_clusters`  `synergy`

`evaluate` copies the file of a module to a folder of its own, so each file stands alone: it imports only `datasets`,
`evaluate`, numpy, scipy and scikit-learn.
"""
