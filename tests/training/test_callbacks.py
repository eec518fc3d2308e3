"""What happens between steps: projections are redrawn."""

import torch

from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining
from xtrimogene.training.arguments import CellTrainingArguments
from xtrimogene.training.pretraining import pretrain


def test_projections_are_redrawn_by_the_step(sizes, blood_panel, labelled, tmp_path):
    torch.manual_seed(0)
    config = XTrimoGeneConfig(num_genes=blood_panel.num_genes, favor_redraw_interval=2, **sizes)
    model = XTrimoGeneForPreTraining(config)
    attention = model.model.decoder.layers[0].self_attn
    arguments = CellTrainingArguments(tmp_path, max_steps=5, disable_tqdm=True, use_cpu=True)
    pretrain(model, blood_panel, labelled[0], arguments=arguments)
    assert torch.equal(attention.projection, attention.drawn_projection(2))
