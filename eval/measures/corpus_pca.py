"""Principal components of the cells that a checkpoint was pre-trained on: the baseline that has seen the same cells.

    training cells  ->  log1p of counts per 10,000, all genes of the panel  ->  50 components
                    ->  corpus_pca.safetensors, beside the checkpoint       ->  components of any other cells

They are fitted to at most 20,000 cells, drawn at random; more do not change what they say of cell types.
Letters: `K` components, `G` genes of the panel.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...inference.beside import read_beside
from ...tokenization.collators import packed
from ...tokenization.panel_xtrimogene import normalize
from ...training.data.manifest import panel_of

if TYPE_CHECKING:
    from ...tokenization.expression_xtrimogene import ExpressionTokenizer
    from ...tokenization.panel_xtrimogene import PanelCounts


FILE = "corpus_pca.safetensors"
CORPUS_PCA_NAME = "PCA of the corpus"
COMPONENTS, FITTED_CELLS = 50, 20_000
TARGET_SUM = 1e4
CHUNK = 4096  # cells transformed at a time


@dataclass(frozen=True)
class CorpusPCA:
    """Principal components of training cells.

    Attributes:
        components: Orthonormal components, float32 `(K, G)`.
        means: Mean value of each gene over the cells that the components are fitted to, float32 `(G,)`.
        num_cells: Number of these cells.
        panel: Hash of the genes of the panel.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> from xtrimogene.training.data.dataset import cells_dataset
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2], [4, 1, 0, 0], [0, 2, 1, 1]], columns=tokenizer.genes)
        >>> cells = tokenizer.read_counts(counts)
        >>> found = CorpusPCA.fit(cells_dataset(cells), tokenizer)
        >>> found.save("panel")
        >>> CorpusPCA.load("panel", tokenizer).transform(cells).shape
        (4, 3)
    """

    components: np.ndarray
    means: np.ndarray
    num_cells: int
    panel: str

    @classmethod
    def fit(cls, dataset: Any, tokenizer: "ExpressionTokenizer", seed: int = 0) -> "CorpusPCA":
        """Fit 50 components, or fewer where there are fewer cells, to at most 20,000 cells of a dataset.

        Args:
            dataset: Cells to learn from, of `cells_dataset` or `read_corpus`.
            tokenizer: Tokenizer with the panel of the cells.
            seed: Seed of the draw of cells and of the solver.

        Raises:
            ValueError: If there are fewer than 2 cells.
        """
        from scipy.sparse import csr_matrix
        from sklearn.decomposition import PCA

        if len(dataset) < 2:
            raise ValueError(f"the corpus has {len(dataset)} cell, and principal components need 2: give more cells")
        rows = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:FITTED_CELLS])
        ids, counts, lengths, totals = packed(dataset.__getitems__(rows.tolist()))
        values = normalize(counts, np.repeat(totals, lengths), TARGET_SUM)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        matrix = csr_matrix((values, ids.astype(np.int32), starts), shape=(len(rows), tokenizer.num_genes))
        number = min(COMPONENTS, *(size - 1 for size in matrix.shape))
        found = PCA(number, svd_solver="arpack", random_state=seed).fit(matrix)  # arpack keeps the matrix sparse
        components, means = (np.ascontiguousarray(part, np.float32) for part in (found.components_, found.mean_))
        return cls(components, means, len(rows), panel_of(tokenizer.genes)["sha256"])

    def save(self, folder: str | os.PathLike) -> None:
        """Write `corpus_pca.safetensors` into a folder."""
        from safetensors.numpy import save_file

        about = {"num_cells": str(self.num_cells), "panel": self.panel}
        save_file({"components": self.components, "means": self.means}, os.path.join(folder, FILE), metadata=about)

    @classmethod
    def load(cls, checkpoint: str | os.PathLike, tokenizer: "ExpressionTokenizer") -> "CorpusPCA | None":
        """Return the components beside a checkpoint, a folder or Hub name; None if it has none.

        Raises:
            ValueError: If the file is damaged, or is of another panel than the tokenizer's.
        """

        def read(file: Any, about: dict[str, str]) -> CorpusPCA:
            tensors = file.get_tensor("components"), file.get_tensor("means")
            return cls(*tensors, int(about["num_cells"]), about["panel"])

        return of_panel(read_beside(checkpoint, FILE, "principal components", read), FILE, checkpoint, tokenizer)

    def transform(self, cells: "PanelCounts") -> np.ndarray:
        """Return the components of cells, float32 `(cells, K)`; genes that were not measured count as zero."""
        chunks = [
            cells.values(TARGET_SUM, start, start + CHUNK)[0] @ self.components.T
            for start in range(0, cells.n_cells, CHUNK)
        ]
        return np.concatenate(chunks) - self.means @ self.components.T


def of_panel(found: Any, name: str, checkpoint: str | os.PathLike, tokenizer: "ExpressionTokenizer") -> Any:
    """Return what was read beside a checkpoint; refuse what was made for another panel than the tokenizer's.

    Args:
        found: What was read, with the attribute `panel`, or None.
        name: Name of its file.
        checkpoint: Folder or Hub name.
        tokenizer: The tokenizer of the checkpoint.

    Raises:
        ValueError: If the panels differ.
    """
    own = panel_of(tokenizer.genes)["sha256"]
    if found is not None and found.panel != own:
        raise ValueError(
            f"{name} of {checkpoint} is of a panel with the hash {found.panel[:12]}..., and the tokenizer's has "
            f"{own[:12]}...: its gene ids mean other genes; delete it, or restore the tokenizer"
        )
    return found
