"""FLOPs of one cell, by formula and by torch's counter. Reproduces the FLOPs table of the paper.

    python -m xtrimogene.eval.cost.flops

Which operations count is said in `modeling_xtrimogene/flops_xtrimogene.py`, with the formulas of the trained model.

Letters: `N` all genes, `D` width, `A` heads, `K` width of a head, `m` random features.

Source: arXiv 2311.15156, the comparison with a dense Transformer and with the Performer of scBERT.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from ...modeling_xtrimogene.flops_xtrimogene import TRAINING, encoder_flops, step_flops, transformer_flops

NUM_GENES = 19_264
NUM_VISIBLE = 1_926  # 10 % of the genes
HEAD_DIM = 64
NUM_FEATURES = int(HEAD_DIM * math.log(HEAD_DIM))  # 266, the number of FAVOR+ for this width


def performer_flops(tokens: int, width: int, heads: int, head_dim: int, features: int, layers: int) -> int:
    """Count one forward of Performer layers: FAVOR+ attention, a feed-forward of four times the width.

    Example:
        >>> f"{performer_flops(tokens=19_264, width=200, heads=10, head_dim=64, features=266, layers=6):.2e}"
        '3...e+11'
    """
    inner = heads * head_dim
    projections = 8 * tokens * width * inner
    feed_forward = 16 * tokens * width**2
    attention = 8 * tokens * inner * features + 2 * tokens * heads * features  # values and denominator
    return layers * (projections + feed_forward + attention)


def decoder_flops(N: int, encoder_width: int, width: int, heads: int, head_dim: int, features: int, layers: int) -> int:
    """Count one forward of xTrimoGene's decoder: a projection of all `N` genes, then a Performer on them."""
    return 2 * N * encoder_width * width + performer_flops(N, width, heads, head_dim, features, layers)


def count_flops(fn: Callable[[], object]) -> int:
    """Return the FLOPs that torch's counter counts while `fn` runs.

    The counter does not know all fused kernels, such as the fast path of torch's encoder layer, and counts 0 for these.
    It also counts on the meta device, where nothing is computed or stored.

    Example:
        >>> left, right = torch.empty(3, 4, device="meta"), torch.empty(4, 5, device="meta")
        >>> count_flops(lambda: left @ right)  # 2 x 3 x 4 x 5
        120
    """
    with FlopCounterMode(display=False) as counter:
        fn()
    return counter.get_total_flops()


def kept_bytes(run: Callable[[], Any]) -> int:
    """Return the bytes that `run` keeps for the backward pass; tensors with one storage count once.

    Example:
        >>> weight = torch.ones(10, requires_grad=True)
        >>> kept_bytes(lambda: (weight * weight).sum())
        40
    """
    kept: dict[int, int] = {}

    def note(part: torch.Tensor) -> torch.Tensor:
        kept[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
        return part

    with torch.autograd.graph.saved_tensors_hooks(note, lambda part: part):
        result = run()
    del result
    return sum(kept.values())


def transformer_forward(hidden_ND: torch.Tensor, heads: int, layers: int) -> torch.Tensor:
    """Run the matrix products of dense Transformer layers with empty weights, to count their FLOPs."""
    width = hidden_ND.shape[-1]
    for _ in range(layers):
        query_ANK, key_ANK, value_ANK = (_heads(_linear(hidden_ND, width), heads) for _ in range(3))
        weights_ANN = (query_ANK @ key_ANK.mT).softmax(-1)
        hidden_ND = _linear((weights_ANN @ value_ANK).movedim(0, 1).flatten(1), width)
        hidden_ND = _linear(_linear(hidden_ND, 4 * width).relu(), width)
    return hidden_ND


def performer_forward(hidden_ND: torch.Tensor, heads: int, head_dim: int, features: int, layers: int) -> torch.Tensor:
    """Run the matrix products of Performer layers with empty weights, to count their FLOPs."""
    width = hidden_ND.shape[-1]
    for _ in range(layers):
        query_ANK, key_ANK, value_ANK = (_heads(_linear(hidden_ND, heads * head_dim), heads) for _ in range(3))
        query_ANm, key_ANm = _linear(query_ANK, features).exp(), _linear(key_ANK, features).exp()
        mixed_ANK = query_ANm @ (key_ANm.mT @ value_ANK)
        mixed_ANK = mixed_ANK / (query_ANm @ key_ANm.sum(-2).unsqueeze(-1))
        hidden_ND = _linear(mixed_ANK.movedim(0, 1).flatten(1), width)
        hidden_ND = _linear(_linear(hidden_ND, 4 * width).relu(), width)
    return hidden_ND


class Cost(NamedTuple):
    """A row of the FLOPs table: forward and backward of one cell."""

    model: str
    paper_parameters: float
    paper: float
    formula: int
    counted: int


def count_step_flops(config: XTrimoGeneConfig, num_seen: int, num_masked: int) -> int:
    """Return the FLOPs of a training step of one cell, counted by torch."""
    from ...modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneForPreTraining

    model = XTrimoGeneForPreTraining(config)
    model.set_attn_implementation("eager")  # the counter does not know the fused attention of CPUs
    with sdpa_kernel(SDPBackend.MATH):
        return count_flops(lambda: model(**placeholder_cells(num_seen, num_masked)).loss.backward())


def placeholder_cells(num_seen: int, num_masked: int, num_cells: int = 1) -> dict[str, torch.Tensor]:
    """Return a masked batch of ones, to measure costs with."""
    genes = torch.arange(num_seen + num_masked).expand(num_cells, -1)
    return {
        "input_ids": genes[:, :num_seen],
        "values": torch.ones(num_cells, num_seen),
        "masked_ids": genes[:, num_seen:],
        "labels": torch.ones(num_cells, num_masked),
    }


def masked_numbers(num_expressed: int) -> tuple[int, int]:
    """Return the numbers of visible and masked genes of a cell: 30 % of expressed and 3 % of zero genes are masked.

    Example:
        >>> masked_numbers(num_expressed=2000)
        (1400, 1118)
    """
    masked_expressed = round(0.3 * num_expressed)
    return num_expressed - masked_expressed, masked_expressed + round(0.03 * (NUM_GENES - num_expressed))


def paper_table() -> list[Cost]:
    """Return the models of the paper's FLOPs table with their costs, the dense Transformer first."""
    genes = torch.empty(NUM_GENES, 256, device="meta")
    scbert_genes = torch.empty(NUM_GENES, 200, device="meta")
    visible = torch.empty(NUM_VISIBLE, 256, device="meta")
    favor = (HEAD_DIM, NUM_FEATURES)

    def xtrimogene() -> None:
        transformer_forward(visible, heads=4, layers=4)
        performer_forward(_linear(genes, 256), 4, *favor, layers=2)

    rows = [
        (
            "Transformer, 8 x 256",
            (11.3e6, 9.86e12),
            transformer_flops(NUM_GENES, 256, 8),
            lambda: transformer_forward(genes, heads=4, layers=8),
        ),
        (
            "Performer of scBERT, 6 x 200",
            (8.9e6, 1.06e12),
            performer_flops(NUM_GENES, 200, 10, *favor, layers=6),
            lambda: performer_forward(scbert_genes, 10, *favor, layers=6),
        ),
        (
            "xTrimoGene, 4 + 2 x 256",
            (9.8e6, 3.35e11),
            encoder_flops(NUM_VISIBLE, 256, 4) + decoder_flops(NUM_GENES, 256, 256, 4, *favor, layers=2),
            xtrimogene,
        ),
    ]
    return [
        Cost(name, *paper, TRAINING * formula, TRAINING * count_flops(forward))
        for name, paper, formula, forward in rows
    ]


def _linear(values: torch.Tensor, width: int) -> torch.Tensor:
    return values @ values.new_empty(values.shape[-1], width)


def _heads(values_ND: torch.Tensor, heads: int) -> torch.Tensor:
    return values_ND.unflatten(-1, (heads, -1)).movedim(1, 0)


def main() -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    rows = paper_table()
    table = Table("model", title=f"forward + backward FLOPs per cell, {NUM_GENES:,} genes, {NUM_VISIBLE:,} visible")
    for column in ("parameters (paper)", "FLOPs (paper)", "formula", "counted", "of Transformer"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.model,
            f"{row.paper_parameters / 1e6:.1f}M",
            f"{row.paper:.2e}",
            f"{row.formula:.2e}",
            f"{row.counted:.2e}",
            f"{row.formula / rows[0].formula:.1%}",
        )
    Console().print(table)
    config, numbers = XTrimoGeneConfig.preset("10M", attention_probs_dropout_prob=0.0), masked_numbers(NUM_VISIBLE)
    formula, counted = step_flops(config, *numbers), count_step_flops(config, *numbers)
    Console().print(
        f"A pre-training step of this package's 10M model: {formula:.2e} FLOPs per cell by formula, {counted:.2e} "
        f"counted, {counted / rows[0].formula:.1%} of the Transformer."
    )


if __name__ == "__main__":
    main()
