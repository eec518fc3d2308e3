import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import xtrimogene
from xtrimogene.hub_cards import CardContent, Metric, write_model_card
from xtrimogene.hub_cards.gallery import gallery

ROOT = Path(xtrimogene.__file__).parent


@pytest.fixture
def checkpoints(tmp_path):
    """Two checkpoints of two families, the second with a result."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_genes": 6}
    of_txfm = xtrimogene.TxFMModel(xtrimogene.TxFMConfig(**sizes))
    sizes |= {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    of_xtrimogene = xtrimogene.XTrimoGeneModel(xtrimogene.XTrimoGeneConfig(**sizes))
    for name, model in (("b-small", of_txfm), ("a-small", of_xtrimogene)):
        model.save_pretrained(tmp_path / name)
    metric = Metric("annotation", "blood", "accuracy", 0.875, {"logistic regression": 0.9})
    write_model_card(
        tmp_path / "b-small",
        CardContent(model_name="b", summary="Reads | writes\nblood.", metrics=[metric], license="cc-by-4.0"),
    )
    write_model_card(tmp_path / "a-small", CardContent(model_name="a", summary="A small model."))
    (tmp_path / "notes").mkdir()
    return tmp_path, of_txfm.num_parameters()


def test_every_checkpoint_has_a_row_from_its_card(checkpoints):
    folder, number = checkpoints
    page = gallery(folder, "../checkpoints/")
    rows = [line for line in page.splitlines() if line.startswith("| [")]
    assert "2 checkpoints in this table" in page
    assert [row.split("]")[0] for row in rows] == ["| [a-small", "| [b-small"]
    assert "[b-small](../checkpoints/b-small/README.md) | Reads \\| writes blood. | TxFM |" in rows[1]
    assert f"| {number:,} |" in rows[1]
    assert rows[1].endswith("| accuracy 0.875 (annotation, blood) | cc-by-4.0 |")
    assert "not evaluated" in rows[0]


def test_a_checkpoint_without_a_card_is_named(checkpoints):
    folder, _ = checkpoints
    (folder / "a-small/README.md").unlink()
    with pytest.raises(ValueError, match=r"a-small has no README\.md"):
        gallery(folder)
    shutil.rmtree(folder / "a-small")
    shutil.rmtree(folder / "b-small")
    with pytest.raises(ValueError, match=r"has no folder with config\.json"):
        gallery(folder)


@pytest.mark.skipif(not (ROOT / "checkpoints").is_dir(), reason="no checkpoint is released")
def test_the_page_is_that_of_the_released_checkpoints():
    page = (ROOT / "hub_cards/gallery.md").read_text(encoding="utf-8")
    made = gallery(ROOT / "checkpoints", "../checkpoints/")
    assert page == made, "write it: python -m xtrimogene.hub_cards.gallery checkpoints hub_cards/gallery.md"


@pytest.mark.slow  # an interpreter imports everything
def test_the_command_writes_the_page(checkpoints):
    folder, _ = checkpoints
    page = folder / "pages" / "gallery.md"
    page.parent.mkdir()
    subprocess.run([sys.executable, "-m", "xtrimogene.hub_cards.gallery", folder, page], check=True)
    assert page.read_text() == gallery(folder, "../")
