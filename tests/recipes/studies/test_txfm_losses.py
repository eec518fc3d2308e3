"""Losses beside those of the mean profile: what a model without input, and one that knows the values, would get."""

import numpy as np
import pandas as pd
import pytest
import torch

from xtrimogene import TxFMConfig, TxFMForPreTraining, TxFMTokenizer
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.recipes.studies.txfm_losses import losses_of
from xtrimogene.training.data.dataset import cells_dataset
from xtrimogene.training.objectives import mean_profile


def test_a_model_that_says_the_mean_profile_explains_nothing(tmp_path):
    tokenizer = TxFMTokenizer.from_genes([f"gene {number}" for number in range(40)], tmp_path)
    counts = np.random.default_rng(0).poisson(3, (40, 40)) + 1
    dataset = cells_dataset(tokenizer.read_counts(pd.DataFrame(counts, columns=tokenizer.genes)))
    profile = mean_profile(dataset, tokenizer, 0)
    config = TxFMConfig.preset("txfm-tiny", num_genes=40, anchored=False, decoder_num_hidden_layers=0)
    model = TxFMForPreTraining(config).eval()
    model.set_mean_profile(torch.from_numpy(profile))
    with torch.no_grad():
        model.decoder.output.weight.zero_()
    found = losses_of(CellModel(model, tokenizer), dataset, profile, seed=0)
    assert found["model"] == pytest.approx(found["mean profile"], rel=1e-5)
    assert found["explained"] == pytest.approx(0, abs=1e-3)
    assert found["known"] < found["mean profile"]
