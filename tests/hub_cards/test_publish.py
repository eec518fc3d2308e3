import shutil

import pytest
from huggingface_hub import ModelCard

import xtrimogene
from xtrimogene.hub_cards.publish import push_checkpoint

GENES = ["TP53", "CD3D", "MS4A1", "NKG7", "LYZ", "GNLY"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small annotator with its tokenizer, without a card."""
    folder = tmp_path_factory.mktemp("published") / "types"
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_genes": 6, "num_labels": 2}
    xtrimogene.TxFMForSequenceClassification(xtrimogene.TxFMConfig(**sizes)).save_pretrained(folder)
    xtrimogene.TxFMTokenizer.from_genes(GENES, folder).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "types")


def test_a_folder_without_a_card_gets_one_that_loads_from_the_hub(hub, folder):
    pushed = push_checkpoint(folder, "me/blood-types")
    card = ModelCard(hub.text("me/blood-types"))
    assert (card.data.library_name, card.data.pipeline_tag, card.data.license) == (
        "transformers", "feature-extraction", "unknown"
    )  # fmt: skip
    assert 'AutoModelForSequenceClassification.from_pretrained("me/blood-types")' in card.text
    assert 'pipeline("cell-annotation", model="me/blood-types")' in card.text
    assert "A TxFM of " in card.text
    assert "```bash" not in card.text  # no command is known
    assert "On what and from which weights these were trained is not stated." in card.text
    assert "from scratch" not in card.text
    assert pushed.kept == ()
    assert 'from_pretrained("types")' in (folder / "README.md").read_text()  # the folder's own card is as it was


def test_pushing_again_keeps_what_was_written_by_hand(hub, folder):
    push_checkpoint(folder, "me/types")
    by_hand = hub.text("me/types").replace("license: unknown", "license: cc-by-4.0").replace("# types", "# Our types")
    hub.edit("me/types", by_hand)
    card = folder / "README.md"
    card.write_text(card.read_text().replace("Not evaluated.", "Accuracy 0.8."))
    pushed = push_checkpoint(folder, "me/types")
    assert pushed.kept == ("metadata: license", "title")
    assert all(text in hub.text("me/types") for text in ("license: cc-by-4.0", "# Our types", "Accuracy 0.8."))


def test_a_folder_without_its_tokenizer_or_model_is_refused(hub, folder):
    (folder / "gene_table.tsv.gz").unlink()
    with pytest.raises(ValueError, match=r"types lacks gene_table\.tsv\.gz, without which it cannot be loaded"):
        push_checkpoint(folder, "me/types")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"types has no config\.json"):
        push_checkpoint(folder, "me/types")
    assert hub.repositories == {}, "what is refused is refused before a repository is made"
