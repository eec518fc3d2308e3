"""The manifest of a corpus: which files it was made of, which shards it has, and its dataset card."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer


FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)  # the first does not say which genes were measured
MANIFEST = "manifest.json"


@dataclass
class Source:
    """A file that was converted, is being converted, or could not be.

    Attributes:
        name: Name of the file, with as many of its folders as tell it from the others.
        bytes: Its size.
        fingerprint: Hash of parts of it, see `fingerprint_of`.
        state: `converting`, `complete` or `failed`.
        error: Why it failed.
        description: Where the counts were found.
        genes: How its columns were matched to the panel.
        measured: Which genes of the panel it measured, see `measured_text`; empty where that is not known.
        measured_by: Where that was found: `columns`, those that name a gene; or `counts`, the genes that any of its
            cells expresses, because its columns do not tell it.
        cells: Cells in it.
        cells_read: Cells looked at so far.
        cells_kept: Of them, those in the corpus.
        left_out: Of them, those that are not, by the first rule that left them out.
        repeated_names: Cells whose name an earlier cell has; they are kept.
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
        file: Its path in the corpus.
        source: Name of the source.
        first_row: Row in the source from which cells were read.
        cells: Cells in it.
        nonzeros: Their counts that are not 0.
        bytes: Its size.
        sha256: Its hash.
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
    """What a corpus holds; `manifest.json`.

    Attributes:
        panel: `sha256` of `genes.txt` and `num_genes`.
        options: What was asked for; the same for all sources.
        sources: In the order in which they were converted.
        shards: In the order of their cells.
        format_version: Of the corpus.
    """

    panel: dict[str, Any]
    options: dict[str, Any]
    sources: list[Source] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    @property
    def num_cells(self) -> int:
        """Cells of all shards."""
        return sum(shard.cells for shard in self.shards)

    def to_json(self) -> str:
        """Return the text of the file, with a hash of itself: what was changed by hand is seen."""
        content = asdict(self)
        return json.dumps({**content, "sha256": hash_of(content)}, indent=1)

    @classmethod
    def from_json(cls, text: str, where: str) -> "Manifest":
        """Read the text of the file.

        Raises:
            ValueError: If it is none, of another version, or was changed.
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
    """Return what tells a panel: the hash of its `genes.txt`, and its size."""
    return {"sha256": hashlib.sha256(genes_text(genes).encode()).hexdigest(), "num_genes": len(genes)}


def genes_text(genes: Sequence[str]) -> str:
    """Return the content of `genes.txt`: one name a line, the line is the id."""
    return "\n".join(genes) + "\n"


def read_manifest(path: Any, tokenizer: "XTrimoGeneTokenizer | None" = None, **storage_options: Any) -> Manifest:
    """Read the manifest of a corpus and check that its shards are there.

    Args:
        path: Folder, or any address that fsspec reads, such as `hf://datasets/owner/name`.
        tokenizer: If given, its panel has to be that of the corpus.
        **storage_options: For fsspec.

    Raises:
        FileNotFoundError: If there is no corpus, or a shard is missing.
        ValueError: If the conversion did not end, a shard has another size, or the panel is another one.
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
    """Compare the manifest with the files that are there.

    Args:
        manifest: Manifest.
        path: The corpus.
        sizes: Name of each file in `data` -> its bytes.
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
    """Return the dataset card, whose header lets `datasets.load_dataset(folder)` find the shards."""
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
