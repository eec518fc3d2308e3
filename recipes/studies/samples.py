"""From cells to samples: embed a donor or a tissue by an Xpressor over the embeddings of its cells. Experimental.

    embeddings of the cells of each sample (S, N, D)
        |  Xpressor: latents read the cells, in no order
        v
    latents side by side, the sample embedding (S, K Z)  -->  linear head  -->  class, such as a condition

It is a worked example of the idea that the output of one scale is the input of the next (Kalfon, Peyré and Cantini,
2025), whose authors proposed it and did not test it. Neither was it tested here on real samples: a study has some
dozens of them, and such a model has thousands of weights. Compare it with the mean of the cells of a sample.

Letters: S samples, N cells of a sample, D width of a cell embedding, K latents, Z width of a latent, C classes.
"""

import numpy as np
import torch
from torch import nn

from ...modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from ...modeling_xtrimogene.heads_xtrimogene import FeatureNorm
from ...modeling_xtrimogene.xpressor_xtrimogene import Xpressor
from ...tokenization.collators import IGNORED

CELLS = 64  # of a sample in a step, drawn anew each time
LEARNING_RATE = 3e-3


class SampleXpressor(nn.Module):
    """Embed samples by latents that read the embeddings of their cells, and classify them.

    Args:
        cell_size: D.
        num_labels: C.
        num_latents: K.
        latent_size: Z.

    Example:
        >>> model = SampleXpressor(cell_size=6, num_labels=2)
        >>> embedding = model.embed(torch.randn(3, 20, 6), torch.ones(3, 20, dtype=torch.bool))
        >>> embedding.shape, model.head(embedding).shape
        (torch.Size([3, 64]), torch.Size([3, 2]))
    """

    def __init__(self, cell_size: int, num_labels: int, num_latents: int = 4, latent_size: int = 16):
        super().__init__()
        config = XTrimoGeneConfig(
            hidden_size=cell_size, num_attention_heads=1, num_latents=num_latents, latent_size=latent_size,
            xpressor_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.norm = FeatureNorm(cell_size)
        self.xpressor = Xpressor(config)
        nn.init.normal_(self.xpressor.latents)
        self.head = nn.Linear(num_latents * latent_size, num_labels)

    def embed(self, cells: torch.Tensor, is_cell: torch.Tensor) -> torch.Tensor:
        """Return sample embeddings `(S, K Z)`.

        Args:
            cells: Embeddings of the cells of each sample, padded, `(S, N, D)`.
            is_cell: Which of them are no padding, bool `(S, N)`.
        """
        return self.xpressor(self.norm(cells), is_cell)[0].flatten(1)


def fit_samples(
    cells: np.ndarray, of_samples: np.ndarray, labels: np.ndarray, seed: int = 0, steps: int = 300
) -> SampleXpressor:
    """Return a model that was trained to tell the classes of samples from the embeddings of their cells.

    Args:
        cells: Cell embeddings, such as `xtrimogene.tl.embed` writes, `(cells, D)`.
        of_samples: Number of the sample of each cell, `(cells,)`.
        labels: Class of each sample, `(S,)`; -100 in samples that are not learned from.
        seed: Seed of the weights and of the cells that are drawn.
        steps: Steps of training, in each of which 64 cells of every sample are drawn.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> of_samples, labels = np.repeat(np.arange(6), 50), np.array([0, 1] * 3)
        >>> cells = rng.normal(size=(300, 4)).astype(np.float32) + labels[of_samples][:, None]
        >>> model = fit_samples(cells, of_samples, labels, steps=20)
        >>> embed_samples(model, cells, of_samples).shape
        torch.Size([6, 64])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SampleXpressor(cells.shape[1], int(labels.max()) + 1)
    cells = cells.astype(np.float32, copy=False)
    rng, learned = np.random.default_rng(seed), np.flatnonzero(labels != IGNORED)
    rows = [np.flatnonzero(of_samples == sample) for sample in learned]
    model.norm.set_statistics(torch.from_numpy(cells[np.concatenate(rows)]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    target, is_cell = torch.from_numpy(labels[learned]).long(), torch.ones(len(learned), CELLS, dtype=torch.bool)
    for _ in range(steps):
        drawn = torch.from_numpy(np.stack([cells[rng.choice(of_sample, CELLS)] for of_sample in rows]))
        loss = nn.functional.cross_entropy(model.head(model.embed(drawn, is_cell)), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def embed_samples(model: SampleXpressor, cells: np.ndarray, of_samples: np.ndarray) -> torch.Tensor:
    """Return the embedding of each sample by all of its cells, `(S, K Z)`; arguments as of `fit_samples`."""
    embedded = []
    for sample in range(int(of_samples.max()) + 1):
        of_sample = torch.from_numpy(cells[of_samples == sample]).float()[None]
        embedded.append(model.embed(of_sample, torch.ones(of_sample.shape[:2], dtype=torch.bool)))
    return torch.cat(embedded)
