"""What is pushed to the Hub, what is refused, and how a card on the Hub is treated."""

import gzip
import json
import re
import shutil
import zlib

import pytest
import torch
import transformers
from transformers import AutoModel, AutoTokenizer

import xtrimogene
from xtrimogene.inference.calibration import FILE
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


@pytest.mark.parametrize("is_by_hand", [False, True], ids=["card of a push", "card by hand"])
def test_weights_of_an_earlier_push_are_removed_and_those_of_people_stay(hub, folder, is_by_hand):
    weights = (folder / "model.safetensors").read_bytes()
    for name in ("calibration", "familiarity", "model-00001-of-00001"):
        (folder / f"{name}.safetensors").write_bytes(weights)
    (folder / "model.safetensors").unlink()
    index = json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}})
    (folder / "model.safetensors.index.json").write_text(index)
    push_folder(folder, "me/types")
    if is_by_hand:
        hub.edit("me/types", "# Ours\n")
        push_folder(folder, "me/types")
        assert "# Ours" in hub.text("me/types")
    hub.write("me/types", "familiarity.safetensors", weights + b"changed by hand")
    hub.write("me/types", "adapter_model.safetensors", weights)
    for path in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        path.unlink()
    (folder / "model.safetensors").write_bytes(weights)
    push_folder(folder, "me/types")
    left = {name for name in hub.files("me/types") if "safetensors" in name}
    assert left == {"model.safetensors", "adapter_model.safetensors", "familiarity.safetensors"}


def test_weights_under_the_standard_name_would_be_loaded_in_the_place_of_others_and_go(hub, folder):
    push_folder(folder, "me/types")
    hub.edit("me/types", "# Ours\n")  # with the card goes what is known of the first push
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}})
    (folder / "model.safetensors.index.json").write_text(index)
    push_folder(folder, "me/types")
    assert "model.safetensors" not in hub.files("me/types")


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
    "table.tsv.gz": (gzip.compress(b"gene\nhf_" + b"a1B2" * 8), r"table\.tsv\.gz, line 2, holds a token of the Hub"),
    "damaged.gz": (b"no gzip", r"damaged\.gz cannot be searched for secrets"),
    "cells.parquet": (b"PAR1", r"cells\.parquet is no file of a checkpoint"),
    "photo.jpg": (b"\xff\xd8\xff", r"photo\.jpg is no file of a checkpoint"),
}
# Kind of a secret -> examples, in two parts so that nobody takes them for real ones.
SECRETS = {
    "Hub": [("hf_", "a1B2" * 8)],
    "GitHub": [("ghp_", "a1B2" * 9), ("github_pat_", "a1B2" * 9)],
    "GitLab": [("glpat-", "a1B2" * 5)],
    "package index": [("pypi-", "AgEI" * 12), ("npm_", "a1B2" * 9)],
    "Slack": [
        ("xoxb-", "123456789012-a1B2"),
        ("xapp-", "1-A0B1-12345"),
        ("https://hooks.slack.com/", "services/T0/B1/x"),
    ],
    "API": [("sk-", "proj-a1B2a1B2a1B2a1B2"), ("sk-", "ant-api03-a1B2a1B2a1B2"), ("AIza", "a1B2" * 9)],
    "AWS": [("AKIA", "A1B2" * 4), ("aws_secret_access_key = ", "a1B2" * 10)],
    "private key": [("-----BEGIN OPENSSH PRIVATE", " KEY-----"), ("-----BEGIN PGP PRIVATE", " KEY BLOCK-----")],
    "JWT": [("eyJhbGciOiJIUzI1NiJ9.", "eyJzdWIiOiIxMjM0NTY3ODkwIn0.a1B2a1B2a1B2")],
    "netrc": [("machine huggingface.co login jane ", "password hunter2"), ("  login jane ", "password hunter2")],
    "address": [("https://jane:", "secret@example.org/x.git")],
    "request": [("Authorization: Basic ", "amFuZTpzZWNyZXQ="), ("'authorization': 'Bearer ", "a1B2a1B2a1B2'")],
    "environment": [("export WANDB_API_KEY=", "0123456789abcdef0123"), ('"OPENAI_TOKEN": "', 'a1B2a1B2a1B2a1B2"')],
}


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_of_all_common_kinds_are_refused(folder, kind):
    for first, second in SECRETS[kind]:
        (folder / "notes.txt").write_text(f"a line\n{first}{second}\n")
        with pytest.raises(ValueError, match=rf"notes\.txt, line 2, holds a .*{kind}.*: remove it"):
            check_folder(folder)


def test_a_secret_on_the_second_line_of_the_card_is_refused(folder):
    for first, second in (*SECRETS["Hub"], ("password ", "hunter2")):
        (folder / "README.md").write_text(f"# Types\n{first}{second}\nMore.\n")
        with pytest.raises(ValueError, match=r"README\.md, line 2, holds a .*: remove it"):
            check_folder(folder)


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_path_in_what_describes_a_picture_is_refused(folder, is_compressed):
    text = b"/home" + b"/jane/run"
    body = b"Comment\0" + (b"\0" + zlib.compress(text) if is_compressed else text)
    kind = b"zTXt" if is_compressed else b"tEXt"
    chunks = [(b"IHDR", bytes(13)), (kind, body), (b"IEND", b"")]
    written = b"".join(len(part).to_bytes(4, "big") + name + part + bytes(4) for name, part in chunks)
    (folder / "loss.png").write_bytes(b"\x89PNG\r\n\x1a\n" + written)
    with pytest.raises(ValueError, match=r"loss\.png, what describes it, holds a path of a machine, /home/jane/run"):
        check_folder(folder)


def test_columns_of_text_of_a_table_are_searched(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"counts": [[1, 2], [3]], "cell_name": ["AAAC", "hf_" + "a1B2" * 8]})
    parquet.write_table(table, tmp_path / "cells.parquet")
    with pytest.raises(ValueError, match=r"cells\.parquet, column cell_name, holds a token of the Hub"):
        check_folder(tmp_path, repo_type="dataset")
    lines = pa.table({"notes": ["machine huggingface.co", "password " + "hunter2", "more"]})
    parquet.write_table(lines, tmp_path / "cells.parquet")
    with pytest.raises(ValueError, match=r"cells\.parquet, column notes, holds a password"):
        check_folder(tmp_path, repo_type="dataset")
    parquet.write_table(table.slice(0, 1), tmp_path / "cells.parquet")
    assert check_folder(tmp_path, repo_type="dataset") == ["cells.parquet"]


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


@pytest.mark.parametrize(
    ("name", "task", "beside"),
    [
        ("small", "AutoModel", "familiarity.safetensors"),
        ("blood-annotator", "AutoModelForSequenceClassification", FILE),
    ],
)
def test_a_released_model_takes_its_card_and_what_lies_beside_it_along(hub, name, task, beside):
    model = getattr(transformers, task).from_pretrained(xtrimogene.checkpoint(name))
    model.push_to_hub("me/blood")
    there = xtrimogene.checkpoint(name)
    assert hub.files("me/blood")[beside] == (there / beside).read_bytes()
    assert f"# xtrimogene-{name}\n" in hub.text("me/blood")
    assert f'{task}.from_pretrained("me/blood")' in hub.text("me/blood")
    again = getattr(transformers, task).from_pretrained("me/blood")
    again.push_to_hub("me/other")
    assert hub.files("me/other")[beside] == (there / beside).read_bytes(), "of a model that came from the Hub"
    for weight in again.base_model.encoder.parameters():
        weight.data += 1e-3
    again.push_to_hub("me/changed")
    assert beside not in hub.files("me/changed")


def test_an_encoder_without_the_head_of_its_classifier_has_no_use_for_the_calibration(hub):
    AutoModel.from_pretrained(xtrimogene.checkpoint("blood-annotator")).push_to_hub("me/encoder")
    assert FILE not in hub.files("me/encoder")


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
