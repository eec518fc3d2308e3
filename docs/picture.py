"""Draw the picture of README.md: cells that come with scanpy, by the checkpoints that come with the package.

`python docs/picture.py` takes a minute and writes docs/pictures/annotated.png.
"""

from pathlib import Path

import scanpy as sc

import xtrimogene
from xtrimogene.eval.report.colours import apart
from xtrimogene.eval.report.maps import annotation_map, umap_places


def main() -> None:
    """Embed with `small`, name types with `blood-annotator`, and draw both."""
    adata = sc.datasets.pbmc68k_reduced()
    xtrimogene.tl.embed(adata)
    xtrimogene.tl.annotate(adata)
    labels, places = adata.obs["xtrimogene_label"].astype(str).tolist(), umap_places(adata.obsm["X_xtrimogene"])
    looks = apart(sorted(set(labels)), labels, [places])
    unknown = adata.obs["xtrimogene_unknown"].to_numpy()
    figure = annotation_map(places, labels, adata.obs["xtrimogene_probability"].to_numpy(), unknown, looks)
    figure.savefig(Path(__file__).parent / "pictures/annotated.png", dpi=110)


if __name__ == "__main__":
    main()
