"""Which genes a file measured is kept from its columns to the cells of a corpus; old corpora are read and mended."""

import json

import anndata
import numpy as np
import pytest

from xtrimogene.training.data.convert import convert_files
from xtrimogene.training.data.corpus import read_corpus, stream_corpus
from xtrimogene.training.data.dataset import cells_dataset
from xtrimogene.training.data.manifest import Manifest, hash_of, read_manifest
from xtrimogene.training.data.measured import MeasuredGenes, measured_from_text, measured_text, num_measured


@pytest.fixture(scope="module")
def files(tmp_path_factory, pbmc):
    """Two files of real cells: one with all columns, one with the last 300, each with genes that no cell expresses."""
    folder = tmp_path_factory.mktemp("files")
    adata = anndata.AnnData(pbmc.raw.X, pbmc.obs[[]], pbmc.raw.var[[]])
    adata[:60].write_h5ad(folder / "all.h5ad")
    adata[60:100, -300:].write_h5ad(folder / "few.h5ad")
    return [folder / "all.h5ad", folder / "few.h5ad"]


def convert(files, folder, tokenizer, **options):
    options = {"min_genes": 0, "shard_cells": 16, "say": lambda line: None, **options}
    return convert_files(files, folder, tokenizer=tokenizer, **options)


def genes_of(cell, tokenizer):
    return np.flatnonzero(np.unpackbits(np.frombuffer(cell["measured"], np.uint8), count=tokenizer.num_genes))


def columns_of(path, tokenizer):
    rows = tokenizer.matcher.match(list(anndata.read_h5ad(path).var_names)).rows
    return np.unique(rows[rows >= 0])


def to_format_1(folder):
    """Turn the manifest of a corpus into what the first version wrote."""
    content = json.loads((folder / "manifest.json").read_text())
    del content["sha256"]
    content["format_version"] = 1
    for source in content["sources"]:
        del source["measured"], source["measured_by"]
    (folder / "manifest.json").write_text(json.dumps({**content, "sha256": hash_of(content)}, indent=1))


@pytest.mark.parametrize("genes", [[], [0], [0, 1, 2, 7], range(19_264), range(1, 19_264, 2)])
def test_text_gives_back_the_genes_and_is_the_shorter_of_two(genes):
    measured = np.zeros(19_264, bool)
    measured[list(genes)] = True
    text = measured_text(measured)
    np.testing.assert_array_equal(measured_from_text(text, 19_264), measured)
    assert len(text) <= len("bits ") + 4 * -(-19_264 // 8 // 3) + 4
    assert text.startswith("bits" if len(genes) == 9_632 else "genes")


@pytest.mark.parametrize("text", ["genes 0-5 19264", "bits gAA=", "all", "bits gA== gA=="])
def test_text_that_fits_no_panel_is_refused(text):
    with pytest.raises(ValueError, match="does not say which of 19,264 genes were measured: convert again"):
        measured_from_text(text, 19_264)


def test_cells_know_the_genes_of_their_shard():
    one, other = np.array([True, False, True]), np.array([False, True, True])
    measured = MeasuredGenes([2, 1, 3], [one, other, one])
    assert [np.unpackbits(np.frombuffer(measured[cell], np.uint8), count=3).tolist() for cell in range(6)] == [
        [1, 0, 1], [1, 0, 1], [0, 1, 1], [1, 0, 1], [1, 0, 1], [1, 0, 1],
    ]  # fmt: skip
    assert measured[0] is measured[5]


def test_a_gene_is_measured_if_any_column_names_it(tokenizer):
    match = tokenizer.matcher.match(["CD3D", "ENSG00000167286.3", "MARCH1", "NOT-A-GENE"], min_share=0)
    assert match.n_matched == match.measured.sum() == 2
    assert match.measured[match.rows[:3]].all()


def test_every_cell_of_a_corpus_says_what_the_columns_of_its_file_are(files, tokenizer, tmp_path):
    done = convert(files, tmp_path / "corpus", tokenizer)
    assert [source.measured_by for source in done.manifest.sources] == ["columns", "columns"]
    corpus = read_corpus(tmp_path / "corpus", tokenizer, cache_dir=str(tmp_path / "cache"))
    stream = list(stream_corpus(tmp_path / "corpus", tokenizer, seed=3, buffer_size=20))
    expected = [columns_of(path, tokenizer) for path in files]
    assert len(expected[0]) > len(expected[1]) > 100
    for cells in (corpus, corpus.select([99, 3, 70]), stream):
        for cell in cells:
            np.testing.assert_array_equal(genes_of(cell, tokenizer), expected[int(cell["cell_index"]) >= 60])
    # Some of these genes are expressed by no cell of the file: counts alone would not tell that they were measured.
    seen = np.unique(np.concatenate([corpus[row]["input_ids"] for row in range(60, 100)]))
    assert set(seen) < set(expected[1])


def test_cells_of_a_file_say_the_same_without_a_corpus(files, tokenizer):
    dataset = cells_dataset(tokenizer.read_counts(files[1]))
    for cell in (dataset[0], dataset.select([7])[0]):
        np.testing.assert_array_equal(genes_of(cell, tokenizer), columns_of(files[1], tokenizer))


def test_the_number_of_cells_in_which_a_gene_was_measured(files, tokenizer, tmp_path):
    convert(files, tmp_path / "corpus", tokenizer)
    corpus = read_corpus(tmp_path / "corpus", tokenizer, cache_dir=str(tmp_path / "cache"))
    both, first = (columns_of(path, tokenizer) for path in reversed(files))
    expected = np.zeros(tokenizer.num_genes, int)
    expected[first], expected[both] = 60, 100
    np.testing.assert_array_equal(num_measured(corpus, tokenizer.num_genes), expected)
    often = corpus.select(np.tile(np.arange(100), 9))
    np.testing.assert_array_equal(num_measured(often, tokenizer.num_genes), 9 * expected)
    said = [name for name in corpus.dataset.column_names if name != "measured"]
    assert (num_measured(corpus.dataset.select_columns(said), tokenizer.num_genes) == 100).all()  # nobody says it


def test_a_corpus_of_format_1_is_read_by_its_counts_and_says_so(files, tokenizer, tmp_path):
    convert(files, tmp_path / "corpus", tokenizer)
    to_format_1(tmp_path / "corpus")
    with pytest.warns(UserWarning, match=r"which genes 2 of its 2 files measured, all.h5ad first.*repeat the"):
        corpus = read_corpus(tmp_path / "corpus", tokenizer, cache_dir=str(tmp_path / "cache"))
    with pytest.warns(UserWarning, match="genes that no cell of a file expresses are taken as not measured"):
        stream = list(stream_corpus(tmp_path / "corpus", tokenizer, seed=None))
    for rows in (range(60), range(60, 100)):
        seen = np.unique(np.concatenate([corpus[row]["input_ids"] for row in rows]))
        for cells in (corpus, stream):
            np.testing.assert_array_equal(genes_of(cells[rows[0]], tokenizer), seen)


def test_the_same_command_again_adds_what_a_corpus_of_format_1_lacks(files, tokenizer, tmp_path):
    convert(files, tmp_path / "corpus", tokenizer)
    before = (tmp_path / "corpus" / "manifest.json").read_text()
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus" / "data").iterdir()}
    to_format_1(tmp_path / "corpus")
    lines = []
    assert convert(files, tmp_path / "corpus", tokenizer, say=lines.append).num_new == 0
    assert (tmp_path / "corpus" / "manifest.json").read_text() == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus" / "data").iterdir()} == shards
    few = len(columns_of(files[1], tokenizer))
    assert f"few.h5ad: recorded that it measured {few:,} genes of the panel" in lines
    lines.clear()
    convert(files, tmp_path / "corpus", tokenizer, say=lines.append)
    assert not any("recorded" in line for line in lines)


def test_a_format_of_the_future_is_refused(files, tokenizer, tmp_path):
    convert(files[1:], tmp_path / "corpus", tokenizer)
    text = (tmp_path / "corpus" / "manifest.json").read_text()
    assert Manifest.from_json(text, "here").format_version == 2
    with pytest.raises(ValueError, match="here has format version 3, this program reads 1 to 2"):
        Manifest.from_json(text.replace('"format_version": 2', '"format_version": 3'), "here")


def test_lists_of_ids_do_not_say_what_was_measured(shared, tokenizer, tmp_path):
    convert([shared / "data/format_fixtures/tahoe_schema_from_kang"], tmp_path / "corpus", tokenizer)
    (source,) = read_manifest(tmp_path / "corpus").sources
    assert source.measured_by == "counts"
    assert "genes that no cell expresses are taken as not measured" in source.description
    corpus = read_corpus(tmp_path / "corpus", tokenizer, cache_dir=str(tmp_path / "cache"))
    seen = np.unique(np.concatenate([cell["input_ids"] for cell in corpus]))
    np.testing.assert_array_equal(genes_of(corpus[0], tokenizer), seen)


@pytest.mark.parametrize(
    "text",
    ["", "genes 5-2", "genes -3", "genes a", "genes 0-", "genes 0-1-2", "genes 8", "bits gA", "bits AAAA", "foo 1"],
)
def test_damaged_measured_genes_are_refused_in_one_sentence(text):
    with pytest.raises(ValueError, match="does not say which of 8 genes were measured"):
        measured_from_text(text, 8)
