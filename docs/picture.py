"""Draw the picture of README.md with the checkpoints that come with the package.

`python docs/picture.py data/pbmc_facs_zheng/pbmc_facs_zheng.h5ad` takes a minute and writes
docs/pictures/annotated.png. No checkpoint was trained on these cells, some of those that docs/embedding.yaml evaluates.
Where the file comes from: docs/evaluation.md.
"""

import sys
from pathlib import Path

import xtrimogene
from xtrimogene.eval.report.colours import apart
from xtrimogene.eval.report.maps import annotation_map, umap_places
from xtrimogene.tokenization.reading import cells_of

EVALUATED, EVERY = 1000, 4  # cells as in docs/embedding.yaml, and which of them are shown


def main() -> None:
    """Embed with `small`, name types with `blood-annotator`, and draw both."""
    adata = cells_of(Path(sys.argv[1]), {}, EVALUATED)[::EVERY].copy()
    xtrimogene.tl.embed(adata)
    xtrimogene.tl.annotate(adata)
    labels, places = adata.obs["xtrimogene_label"].astype(str).tolist(), umap_places(adata.obsm["X_xtrimogene"])
    looks = apart(sorted(set(labels)), labels, [places])
    unknown = adata.obs["xtrimogene_unknown"].to_numpy()
    figure = annotation_map(places, labels, adata.obs["xtrimogene_probability"].to_numpy(), unknown, looks)
    figure.savefig(Path(__file__).parent / "pictures/annotated.png", dpi=110)


if __name__ == "__main__":
    main()
