"""What is pushed to the Hub, what is refused, and how a card on the Hub is treated."""

import json
import re
import shutil

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import xtrimogene
from xtrimogene.modeling_xtrimogene.sharing_xtrimogene import check_folder, push_folder

GENES = ["TP53", "CD3D", "MS4A1", "NKG7", "LYZ", "GNLY"]


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A small classifier with its tokenizer and a card."""
    folder = tmp_path_factory.mktemp("shared") / "types"
    config = xtrimogene.TxFMConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_genes=len(GENES), num_labels=2
    )
    xtrimogene.TxFMForSequenceClassification(config).save_pretrained(folder)
    xtrimogene.TxFMTokenizer.from_genes(GENES, folder).save_pretrained(folder)
    (folder / "README.md").write_text("# types\n\nTwo types.\n")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "types")


def test_a_folder_comes_back_as_it_was_pushed_in_one_commit(hub, folder):
    pushed = push_folder(folder, "me/types", private=True)
    files = hub.files("me/types")
    names = sorted(path.name for path in folder.iterdir())
    assert sorted(set(files) - {".gitattributes"}) == names
    assert pushed.files == len(names)
    for name in set(names) - {"README.md"}:
        assert files[name] == (folder / name).read_bytes(), name
    assert pushed.commit.oid == hub.revision("me/types")
    assert len(hub.repositories["model", "me/types"].commits) == 2  # the Hub's own and this one
    assert hub.repositories["model", "me/types"].private
    assert hub.text("me/types").startswith("---\nlibrary_name: transformers\npipeline_tag: feature-extraction\n---\n")
    model = AutoModel.from_pretrained("me/types")
    kept = xtrimogene.TxFMModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(weight, kept[name]) for name, weight in model.state_dict().items())
    assert model.config._commit_hash == pushed.commit.oid
    assert AutoTokenizer.from_pretrained("me/types").genes == GENES
    again = push_folder(folder, "me/types")
    assert again.commit.oid == pushed.commit.oid, "nothing changed, and there is a commit"


def test_weights_that_the_folder_no_longer_has_are_removed(hub, folder):
    shutil.copyfile(folder / "model.safetensors", folder / "calibration.safetensors")
    push_folder(folder, "me/types")
    (folder / "calibration.safetensors").unlink()
    push_folder(folder, "me/types")
    assert "calibration.safetensors" not in hub.files("me/types")
    assert "model.safetensors" in hub.files("me/types")


def test_a_public_repository_is_not_taken_for_a_private_one(hub, folder):
    push_folder(folder, "me/types")
    with pytest.raises(ValueError, match="me/types is public on the Hub, and it was to be private"):
        push_folder(folder, "me/types", private=True)


REFUSED = {
    "weights.bin": (b"\x80\x02}q\x00.", r"weights\.bin may be a pickle"),
    "state.json": (b"\x80\x04\x95\x00", r"state\.json may be a pickle"),
    "other.safetensors": (b"PK\x03\x04data.pkl", r"other\.safetensors may be a pickle"),
    "cells.h5ad": (b"\x89HDF", r"cells\.h5ad is no file of a checkpoint"),
    "metrics.json": (
        b'{\n"file": "/home/jane/cells.h5ad"}',
        r"metrics\.json, line 2, holds a path .* /home/jane/cells",
    ),
    "notes.txt": (b"C:\\Users\\jane\\cells.h5ad", r"notes\.txt, line 1, holds a path of a machine, C:\\Users"),
    "run.yaml": (b"\n\ntoken: hf_" + b"a1B2" * 8, r"run\.yaml, line 3, holds a token of the Hub"),
    "key.txt": (b"-----BEGIN RSA PRIVATE" + b" KEY-----", r"key\.txt, line 1, holds a private key"),
    "log.txt": (b"https://jane:secret" + b"@example.org", r"log\.txt, line 1, holds a password"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_is_refused_by_file_and_line(folder, name):
    content, message = REFUSED[name]
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        check_folder(folder)
    assert "\n" not in str(error.value)


def test_a_path_in_the_header_of_weights_is_refused(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", metadata={"source": "/scratch/jane/run"})
    with pytest.raises(
        ValueError, match=r"model\.safetensors, its header, holds a path of a machine, /scratch/jane/run"
    ):
        check_folder(folder)


@pytest.mark.parametrize(
    ("missing", "because"),
    [
        ("model.safetensors", "its weights"),
        ("genes.txt", "without which it cannot be loaded"),
        ("modeling_txfm.py", r"which config\.json names"),
        ("pipelines_xtrimogene.py", r"which (config\.json|pretrained_xtrimogene\.py) names"),
        ("columns_xtrimogene.py", r"which \w+\.py names"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused(folder, missing, because):
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=rf"types lacks {re.escape(missing)}, {because}: save"):
        check_folder(folder, ["genes.txt"])


def test_weights_in_several_files_all_have_to_be_there(folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"lacks model-00002-of-00002\.safetensors, which model\.safetensors\.index"):
        check_folder(folder)


@pytest.mark.parametrize(
    "text", ["see https://example.org/home/jane", "data/cells.h5ad", "and/or", "path: data/*.parquet"]
)
def test_what_is_no_path_of_a_machine_passes(folder, text):
    (folder / "notes.txt").write_text(text)
    assert "notes.txt" in check_folder(folder)


def test_the_token_of_this_machine_is_refused_whatever_it_looks_like(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "anything-that-is-a-token")
    (folder / "notes.txt").write_text("login(anything-that-is-a-token)")
    with pytest.raises(ValueError, match=r"notes\.txt, line 1, holds your token"):
        check_folder(folder)


def test_a_model_pushes_itself_with_the_card_of_its_unchanged_folder(hub, folder):
    (folder / "calibration.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    model = xtrimogene.TxFMForSequenceClassification.from_pretrained(folder)
    commit = model.push_to_hub("me/types")
    assert commit.oid == hub.revision("me/types")
    assert "Two types." in hub.text("me/types")
    assert "calibration.safetensors" in hub.files("me/types")
    model.classifier.out_proj.bias.data += 1
    hub.edit("me/types", hub.text("me/types") + "\n## Notes\n\nBy hand.\n")
    model.push_to_hub("me/types", commit_message="Other weights")
    assert "calibration.safetensors" not in hub.files("me/types"), "it holds for other weights"
    assert "By hand." in hub.text("me/types")
    assert "pipeline_tag: feature-extraction" in hub.text("me/types")


def test_a_tokenizer_pushes_itself_and_leaves_room_for_the_card_of_the_model(hub, folder):
    xtrimogene.TxFMTokenizer.from_pretrained(folder).push_to_hub("me/types")
    assert {"genes.txt", "gene_table.tsv.gz", "tokenization_txfm.py", "tokenizer_config.json"} <= set(
        hub.files("me/types")
    )
    assert "library_name: transformers" in hub.text("me/types")
    assert "pipeline_tag: feature-extraction" in hub.text("me/types")
    xtrimogene.TxFMForSequenceClassification.from_pretrained(folder).push_to_hub("me/types")
    assert "More Information Needed" not in hub.text("me/types")
    assert "Two types." in hub.text("me/types")
