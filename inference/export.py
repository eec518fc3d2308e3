"""The encoder of a checkpoint as a program without this package: a torch.export archive, or an ONNX file.

    input_ids, values, attention_mask (B, L)  ->  cell embeddings (B, D), for any B and L

Letters: B cells, L genes of the longest cell, D width of the embedding.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..atomic import UNFINISHED

NAMES = ("input_ids", "values", "attention_mask")
RESULT = "cell_embedding"


class CellEncoder(nn.Module):
    """Cell embeddings of a model, as a plain function of three tensors.

    Args:
        model: A model with an encoder, such as `AutoModel.from_pretrained` gives.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return cell embeddings `(B, D)` of a padded batch `(B, L)`."""
        return self.model(input_ids, values, attention_mask).pooler_output


def export_encoder(model: Any, path: str | os.PathLike) -> None:
    """Write the encoder of a model: `.pt2` for `torch.export.load`, `.onnx` for any ONNX runtime.

    Counts become batches by the tokenizer, as always; what is written is a function of the batch. It takes any number
    of cells and genes. Its embeddings are those of the model to rounding.

    Args:
        model: An xTrimoGene with full attention, in float32, such as `AutoModel.from_pretrained` gives. It is not
            changed.
        path: The file to write. It is replaced.

    Raises:
        ValueError: If the path has another ending, or the encoder cannot be exported.
        ImportError: If the packages that write ONNX are not installed.

    Example:
        >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneModel
        >>> model = XTrimoGeneModel(XTrimoGeneConfig.preset("tiny", num_genes=50, num_hidden_layers=1)).eval()
        >>> export_encoder(model, "encoder.pt2")
        >>> encode = torch.export.load("encoder.pt2").module()
        >>> batch = torch.tensor([[3, 7, 11]]), torch.tensor([[1.2, 0.7, 2.5]]), torch.ones(1, 3, dtype=torch.long)
        >>> encode(*batch).shape
        torch.Size([1, 64])
    """
    path = Path(path)
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'}: give a path that ends in .pt2 or .onnx")
    attention = getattr(model.config, "encoder_attention", None)
    if attention != "full":
        raise ValueError(
            f"{type(model).__name__} with encoder_attention={attention!r} cannot be exported, only encoders of "
            f"xTrimoGene with full attention: give such a checkpoint, or use transformers"
        )
    if path.suffix == ".onnx" and importlib.util.find_spec("onnxscript") is None:
        raise ImportError("ONNX needs onnxscript, which is not installed: pip install 'xtrimogene[onnx]'")
    was_training = model.training
    program = exported(model.eval())
    model.train(was_training)
    unfinished = path.with_name(f"{path.stem}{UNFINISHED}{path.suffix}")
    if path.suffix == ".pt2":
        torch.export.save(program, unfinished)
    else:
        found = torch.onnx.export(program, input_names=NAMES, output_names=[RESULT], dynamo=True, verbose=False)
        assert found is not None  # it is None for the exporter of torch before 2.5 only
        found.save(unfinished)
    unfinished.replace(path)


@torch.no_grad()
def exported(model: Any) -> torch.export.ExportedProgram:
    """Return the encoder as a program for any number of cells and genes; the model is in evaluation mode."""
    cells, genes = torch.export.Dim("cells"), torch.export.Dim("genes")
    ids = torch.arange(8, device=model.device).repeat(2, 1)
    example = ids, torch.ones(ids.shape, device=model.device), torch.ones_like(ids)
    return torch.export.export(CellEncoder(model), example, dynamic_shapes=({0: cells, 1: genes},) * len(NAMES))
