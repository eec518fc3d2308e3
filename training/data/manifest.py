"""The manifest of a corpus, which lists its files and shards, and its dataset card."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...tokenization.expression_xtrimogene import ExpressionTokenizer


FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)  # version 1 does not say which genes were measured
MANIFEST = "manifest.json"


@dataclass
class Source:
    """A file that was converted, is being converted, or could not be.

    Attributes:
        name: Name of the file, with as many of its parent folders as are needed to tell it from the other files.
        bytes: Size of the file.
        fingerprint: Hash of the size and of some parts of the file, which shows whether it changed.
        state: `converting`, `complete` or `failed`.
        error: Why the conversion failed.
        description: Where the counts were found.
        genes: How the columns were matched to the panel.
        measured: Ids of the measured genes as text, such as `genes 0-443 500`; empty if they are not known.
        measured_by: How the measured genes were found. `columns`: they are the genes that have a column. `counts`: they
            are the genes that at least one cell expresses, for files whose columns do not tell.
        cells: Number of cells in the file.
        cells_read: Number of cells read so far.
        cells_kept: Number of read cells that are in the corpus.
        left_out: Number of read cells that are not in the corpus, by the first rule that excluded them.
        repeated_names: Number of cells that have the name of an earlier cell; they are kept.
    """

    name: str
    bytes: int
    fingerprint: str
    state: str = "converting"
    error: str | None = None
    description: str = ""
    genes: dict[str, Any] = field(default_factory=dict)
    measured: str = ""
    measured_by: str = ""
    cells: int = 0
    cells_read: int = 0
    cells_kept: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    repeated_names: int = 0


@dataclass
class Shard:
    """A Parquet file of cells of one source.

    Attributes:
        file: Path of the shard in the corpus.
        source: Name of the source.
        first_row: Row of the source at which the shard begins.
        cells: Number of cells.
        nonzeros: Number of counts that are not 0.
        bytes: Size of the shard.
        sha256: Hash of the shard.
    """

    file: str
    source: str
    first_row: int
    cells: int
    nonzeros: int
    bytes: int
    sha256: str


@dataclass
class Manifest:
    """Content of a corpus, stored as `manifest.json`.

    Attributes:
        panel: `sha256` of `genes.txt`, and `num_genes`.
        options: Options of the conversion, the same for all sources.
        sources: Converted files, in the order of their conversion.
        shards: Shards, in the order of their cells.
        format_version: Version of the format of the corpus.

    Example:
        >>> manifest = Manifest(panel_of(["CD3E", "MS4A1"]), {"min_genes": 200})
        >>> Manifest.from_json(manifest.to_json(), "manifest.json") == manifest
        True
    """

    panel: dict[str, Any]
    options: dict[str, Any]
    sources: list[Source] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    @property
    def num_cells(self) -> int:
        """Number of cells in all shards."""
        return sum(shard.cells for shard in self.shards)

    def to_json(self) -> str:
        """Return the text of `manifest.json`, with a hash of its content that shows changes by hand."""
        content = asdict(self)
        return json.dumps({**content, "sha256": hash_of(content)}, indent=1)

    @classmethod
    def from_json(cls, text: str, where: str) -> "Manifest":
        """Return the manifest that a text of `manifest.json` holds.

        Args:
            text: Content of the file.
            where: Path of the file, for errors.

        Raises:
            ValueError: If the text is no manifest, has another version, or was changed by hand.
        """
        try:
            content = json.loads(text)
            version, given = content.pop("format_version"), content.pop("sha256")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} is no manifest of a corpus ({error}): convert into a new folder") from error
        if version not in READABLE_VERSIONS:
            raise ValueError(
                f"{where} has format version {version}, this program reads {min(READABLE_VERSIONS)} to "
                f"{FORMAT_VERSION}: convert again, or use the version of the program that wrote it"
            )
        if given != hash_of({**content, "format_version": version}):
            raise ValueError(
                f"{where} was changed after it was written: its content does not give its sha256 {given[:12]}...; "
                f"restore it, or convert again into a new folder"
            )
        content["sources"] = [Source(**source) for source in content["sources"]]
        content["shards"] = [Shard(**shard) for shard in content["shards"]]
        return cls(**content)


def hash_of(content: dict[str, Any]) -> str:
    """Return the hash of the content of a manifest."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def panel_of(genes: Sequence[str]) -> dict[str, Any]:
    """Return what identifies a panel: the hash of its `genes.txt`, and its number of genes.

    Example:
        >>> panel_of(["CD3E", "MS4A1"])["num_genes"]
        2
    """
    return {"sha256": hashlib.sha256(genes_text(genes).encode()).hexdigest(), "num_genes": len(genes)}


def genes_text(genes: Sequence[str]) -> str:
    """Return the content of `genes.txt`: one gene name a line; the number of the line, from 0, is the id.

    Example:
        >>> genes_text(["CD3E", "MS4A1"]).splitlines()
        ['CD3E', 'MS4A1']
    """
    return "\n".join(genes) + "\n"


def read_manifest(path: Any, tokenizer: "ExpressionTokenizer | None" = None, **storage_options: Any) -> Manifest:
    """Read the manifest of a corpus and check that its shards are there.

    Args:
        path: Folder of the corpus, or any address that fsspec reads, such as `hf://datasets/owner/name`.
        tokenizer: If given, its panel has to be that of the corpus.
        **storage_options: Options of fsspec, such as credentials.

    Raises:
        FileNotFoundError: If there is no corpus, or a shard is missing.
        ValueError: If the conversion did not end, a shard has another size, or the panel is another one.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2], [4, 1, 0, 0], [0, 2, 1, 1]], columns=tokenizer.genes)
        >>> counts.to_csv("cells.csv")
        >>> from xtrimogene.training.data.convert import convert_files
        >>> _ = convert_files(["cells.csv"], "corpus", tokenizer=tokenizer, min_genes=1, say=lambda line: None)
        >>> read_manifest("corpus", tokenizer).num_cells
        4
    """
    from fsspec.core import url_to_fs

    files, root = url_to_fs(str(path), **storage_options)
    if not files.exists(f"{root}/{MANIFEST}"):
        raise FileNotFoundError(f"{path} holds no {MANIFEST}, so it is no corpus: make one with xtrimogene convert")
    manifest = Manifest.from_json(files.cat_file(f"{root}/{MANIFEST}").decode(), f"{path}/{MANIFEST}")
    if unfinished := [source for source in manifest.sources if source.state == "converting"]:
        source = unfinished[0]
        raise ValueError(
            f"{path} is not finished: {source.cells_read:,} of {source.cells:,} cells of {source.name} were read; "
            f"repeat the command that made it, it goes on from there"
        )
    if not manifest.num_cells:
        raise ValueError(f"{path} holds 0 cells of {len(manifest.sources)} files: its manifest says why")
    there = files.ls(f"{root}/data", detail=True) if files.exists(f"{root}/data") else []
    check_shards(manifest, path, {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in there})
    if hashlib.sha256(files.cat_file(f"{root}/genes.txt")).hexdigest() != manifest.panel["sha256"]:
        raise ValueError(f"{path}/genes.txt is not the panel that the corpus was made for: restore it")
    if tokenizer is not None and panel_of(tokenizer.genes) != manifest.panel:
        raise ValueError(
            f"{path} was made for a panel of {manifest.panel['num_genes']:,} genes, hash "
            f"{manifest.panel['sha256'][:12]}..., and the tokenizer has {tokenizer.num_genes:,}, hash "
            f"{panel_of(tokenizer.genes)['sha256'][:12]}...: gene ids would mean other genes; convert again for it"
        )
    return manifest


def check_shards(manifest: Manifest, path: Any, sizes: dict[str, int]) -> None:
    """Check that all shards of a manifest exist and have the right size.

    Args:
        manifest: The manifest.
        path: The corpus, for errors.
        sizes: Name of each file in `data` -> its size in bytes.

    Raises:
        FileNotFoundError: If a shard is missing.
        ValueError: If a shard has another size.
    """
    missing = [shard.file for shard in manifest.shards if shard.file.rsplit("/", 1)[-1] not in sizes]
    if missing:
        raise FileNotFoundError(
            f"{path} lacks {len(missing)} of {len(manifest.shards)} shards, {missing[0]} first: copy it again, or "
            f"convert again into a new folder"
        )
    for shard in manifest.shards:
        found = sizes[shard.file.rsplit("/", 1)[-1]]
        if found != shard.bytes:
            raise ValueError(
                f"{path}/{shard.file} has {found:,} bytes, and {shard.bytes:,} in {MANIFEST}: it is damaged; copy it "
                f"again, or convert again into a new folder"
            )


def card(name: str, manifest: Manifest) -> str:
    """Return the dataset card of a corpus. Its header tells `datasets.load_dataset(folder)` where the shards are."""
    rows = [
        f"| {source.name} | {source.cells:,} | {source.cells_kept:,} | {source.description} | "
        f"{source.genes['n_matched']:,} |"
        for source in manifest.sources
        if source.state == "complete"
    ]
    return CARD.format(
        name=name,
        cells=manifest.num_cells,
        nonzeros=sum(shard.nonzeros for shard in manifest.shards),
        genes=manifest.panel["num_genes"],
        obs="".join(f", `{column}`" for column in manifest.options["obs"]),
        rows="\n".join(rows),
    )


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
tags:
- single-cell
- biology
- gene-expression
- scRNA-seq
---

# {name}

{cells:,} cells, {nonzeros:,} counts that are not 0, on a panel of {genes:,} genes (`genes.txt`, the line is the id).
One row a cell: `input_ids` (expressed genes, ascending), `counts` (raw), `total` (all counts of the cell, also of genes
that are not on the panel), `cell_index`, `length`, `source`, `source_row`, `cell_name`{obs}. `manifest.json` says how
each file was read, which genes it measured, which cells were left out and why, and the hash of each shard.

```python
import datasets

cells = datasets.load_dataset("parquet", data_files="data/*.parquet", split="train")
```

| file | cells | kept | counts | genes of the panel |
|---|---|---|---|---|
{rows}

The licence is that of the files it was made from.
"""
