from xtrimogene.runs import loss_baselines


def test_baselines_stand_beside_a_loss_only_in_its_units():
    recovery = {
        name: {"pearson": 0.8, "mse": 0.4, "r2": 0.1, "pearson_expressed": 0.7} for name in ("xTrimoGene", "PCA")
    }
    assert loss_baselines(recovery, "regression") == {"PCA": {"pearson": 0.8, "mse": 0.4}}
    assert loss_baselines(recovery, "classification") == {"PCA": {"pearson": 0.8}}
