"""Weights of a scFoundation checkpoint under our names."""

import pytest
import torch

from xtrimogene.modeling_xtrimogene.convert_scfoundation import convert_state_dict


def test_a_foreign_key_is_named():
    with pytest.raises(ValueError, match=r"'encoder\.surprise\.weight' \(2, 3\) is not a weight"):
        convert_state_dict({"model.encoder.surprise.weight": torch.zeros(2, 3)})
