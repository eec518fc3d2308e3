"""`push` shares checkpoints and corpora; `convert-checkpoint` makes checkpoint folders of a scFoundation checkpoint."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

import xtrimogene
from xtrimogene.training.data.convert import convert_files
from xtrimogene.training.data.corpus import read_corpus, stream_corpus

GENES = ["TP53", "CD3D", "MS4A1", "NKG7", "LYZ", "GNLY"]


@pytest.mark.parametrize(
    ("command", "example"),
    [("convert-checkpoint", "models.ckpt -o scfoundation"), ("push", "blood-types me/blood-types --private")],
)
def test_help_holds_an_example(run, command, example):
    assert f"Example: xtrimogene {command} {example}" in " ".join(run(command, "--help").stdout.split())


@pytest.fixture
def corpus(tmp_path):
    """A corpus of eight cells, and its tokenizer."""
    tokenizer = xtrimogene.XTrimoGeneTokenizer.from_genes(GENES, tmp_path / "panel")
    counts = np.random.default_rng(0).poisson(2, (8, 6)) + np.eye(8, 6, dtype=int)
    pd.DataFrame(counts, columns=GENES).to_csv(tmp_path / "cells.csv")
    folder = tmp_path / "corpus"
    convert_files([tmp_path / "cells.csv"], folder, tokenizer=tokenizer, min_genes=1, say=lambda line: None)
    return folder, tokenizer


def test_a_corpus_is_pushed_as_a_dataset_and_streamed_from_there(hub, succeed, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.endpoint)
    folder, tokenizer = corpus
    told = json.loads(succeed("push", folder, "me/cells", "--json").stdout)
    assert told["revision"] == hub.revision("me/cells", "dataset")
    assert told["repo_id"] == "me/cells"
    files = hub.files("me/cells", repo_type="dataset")
    assert {"manifest.json", "genes.txt", "README.md"} < set(files)
    streamed = list(stream_corpus("hf://datasets/me/cells", tokenizer, seed=None))
    here = read_corpus(folder, tokenizer, cache_dir=str(tmp_path / "arrow"))
    assert [cell["counts"].tolist() for cell in streamed] == [here[row]["counts"].tolist() for row in range(8)]

    by_hand = hub.text("me/cells", repo_type="dataset") + "\n## Donors\n\nEight.\n"
    hub.edit("me/cells", by_hand, repo_type="dataset")
    commit = here.push_to_hub("me/cells")
    assert "Eight." in hub.text("me/cells", repo_type="dataset")
    assert commit.oid == hub.revision("me/cells", "dataset")
    with pytest.raises(ValueError, match="these are 2 of 8 cells of a corpus, which is pushed as a whole"):
        here.select([0, 1]).push_to_hub("me/cells")


def test_a_corpus_that_lacks_a_shard_or_holds_another_file_is_refused(hub, fail, corpus):
    folder, _ = corpus
    (folder / "cells.h5ad").write_bytes(b"")
    assert "cells.h5ad is no file of a checkpoint or of a corpus" in fail("push", folder, "me/cells")
    (folder / "cells.h5ad").unlink()
    next((folder / "data").iterdir()).unlink()
    assert "lacks 1 of 1 shards" in fail("push", folder, "me/cells")
    assert hub.repositories == {}


def test_what_cannot_be_pushed_is_said_in_a_line(hub, fail, checkpoint, tmp_path, monkeypatch):
    checkpoint = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    assert "give user/name" in fail("push", checkpoint, "blood", code=2)
    assert "is no folder: give the folder" in fail("push", tmp_path / "absent", "me/blood")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in fail("push", tmp_path / "empty", "me/blood")
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\n\n# blood\n")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not know the token of this machine: log in again" in fail("push", checkpoint, "me/blood")
    with monkeypatch.context() as without_hub:
        without_hub.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        assert "http://127.0.0.1:9 does not answer" in fail("push", checkpoint, "me/blood")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "no token of the Hub: log in with `hf auth login`" in fail("push", checkpoint, "me/blood")


def test_a_result_names_the_commit_of_its_model(hub, succeed, checkpoint, real_cells, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "blood")
    (folder / "README.md").unlink(missing_ok=True)
    done = succeed("push", folder, "me/blood", "--json")
    assert "blood has no README.md: one is written" in done.stderr
    told = json.loads(done.stdout)
    adata = xtrimogene.tl.embed(real_cells[:3], "me/blood", device="cpu", copy=True)
    assert adata.uns["X_xtrimogene"]["model"] == "me/blood"
    assert adata.uns["X_xtrimogene"]["revision"] == told["revision"] == hub.revision("me/blood")
