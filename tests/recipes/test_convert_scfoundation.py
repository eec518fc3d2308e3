"""The authors' checkpoint becomes folders with the outputs of the reference, or one error names what is wrong."""

import copy
import json
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from scipy.sparse import csr_matrix
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoTokenizer
from typer.testing import CliRunner

from xtrimogene import XTrimoGeneConfig, XTrimoGeneTokenizer
from xtrimogene.cli import app
from xtrimogene.recipes.convert_scfoundation import convert_checkpoint, layout

ENTRIES = ("cell", "gene", "rde")


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden" / "scfoundation"


@pytest.fixture(scope="module")
def tiny(golden):
    return golden / "tiny" / "seed7" / "models.ckpt"


@pytest.fixture(scope="module")
def converted(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "scfoundation"
    assert list(convert_checkpoint(tiny, folder)) == list(ENTRIES)
    return folder


@pytest.fixture(scope="module")
def raw_counts(golden):
    """Raw counts of 4 cells on the published panel, and their totals."""
    with np.load(golden / "e2e" / "raw_counts_19264.npz") as arrays:
        counts = csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), arrays["shape"])
    return counts, np.asarray(counts.sum(1)).ravel()


@pytest.fixture
def changed(tiny, tmp_path):
    """Write the tiny file once more, with what a function changes in it; return its path."""

    def write(change):
        checkpoint = torch.load(tiny, weights_only=True)
        checkpoint = {name: copy.deepcopy(entry) for name, entry in checkpoint.items()}  # the file shares their parts
        change(checkpoint)
        path = tmp_path / "changed.ckpt"
        torch.save(checkpoint, path)
        return path

    return write


def run(*arguments):
    return CliRunner().invoke(app, ["convert-checkpoint", *map(str, arguments)])


def fail(*arguments):
    """Return the error, which is one line without a traceback."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    assert "Traceback" not in result.output
    return line


# -- outputs --------------------------------------------------------------------------------------------------


def tokens(rows, pad_id):
    """The reference's rows [genes, T, S] as a padded batch of what is above zero."""
    lengths = (rows > 0).sum(1)
    input_ids = torch.full((len(rows), int(lengths.max())), pad_id)
    values = torch.zeros(input_ids.shape)
    attention_mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
    input_ids[attention_mask] = (rows > 0).nonzero()[:, 1]
    values[attention_mask] = rows[rows > 0]
    return {"input_ids": input_ids, "values": values, "attention_mask": attention_mask.long()}


@torch.no_grad()
@pytest.mark.parametrize("mode", ["sc_F_t4", "sc_A_f1"])
def test_converted_folders_give_the_outputs_of_the_reference(golden, converted, mode):
    inputs, outputs = (load_file(golden / "tiny" / "seed7" / f"{name}.safetensors") for name in ("inputs", "outputs"))
    close = {"atol": 1e-5, "rtol": 0}
    cell = AutoModel.from_pretrained(converted / "cell")
    batch = tokens(inputs[f"x_{mode}"], cell.config.pad_token_id)
    torch.testing.assert_close(cell(**batch).pooler_output, outputs[f"cell_all.{mode}"], **close)
    cell = AutoModel.from_pretrained(converted / "cell", pooling="max")
    torch.testing.assert_close(cell(**batch).pooler_output, outputs[f"cell_max.{mode}"], **close)
    gene = AutoModelForPreTraining.from_pretrained(converted / "gene")
    torch.testing.assert_close(gene.model.contextual_gene_embeddings(**batch), outputs[f"gene.{mode}"], **close)
    torch.testing.assert_close(gene(**batch).logits, outputs[f"gene_expression.{mode}"], **close)


@torch.no_grad()
@pytest.mark.parametrize(
    ("entry", "depth", "reference"), [("cell", 4.0, "sc_csv_F_t4_all"), ("rde", 5.0, "sc_csv_F_a5_rde")]
)
def test_raw_counts_through_the_command_line_and_the_converted_tokenizer(
    golden, raw_counts, tmp_path, entry, depth, reference
):
    """The published panel in its order, entries that differ, and counts of the whole file as the authors read them."""
    result = run(golden / "e2e" / "models.ckpt", "-o", tmp_path / "out", "--entry", entry, "--json")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out" / entry
    assert "non-commercial" in json.loads(result.stdout)["licence"]
    assert json.loads(result.stdout)["entries"] == {
        entry: {
            "folder": str(folder), "parameters": 312_955, "num_genes": 19_264, "hidden_size": 16,
            "num_hidden_layers": 1, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1,
        }
    }  # fmt: skip
    assert [path.name for path in (tmp_path / "out").iterdir()] == [entry]  # the others were not asked for
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    assert tokenizer.genes == XTrimoGeneTokenizer.default().genes
    assert tokenizer.vocab_size == model.config.vocab_size
    counts, totals = raw_counts
    rows = []
    for cell in range(counts.shape[0]):
        # t4 is a target depth of 4; a5 is that of the cell plus 5.
        target = depth + (np.log10(totals[cell]) if entry == "rde" else 0)
        batch = tokenizer.tokenize_counts(counts[cell], totals[[cell]], target_depth=target)
        rows.append(model(**batch).pooler_output)
    expected = torch.from_numpy(np.load(golden / "e2e" / f"out.{reference}.npy"))
    torch.testing.assert_close(torch.cat(rows), expected, atol=1e-5, rtol=0)


def test_defaults_are_safe_and_those_of_the_script_elsewhere(converted):
    config = AutoConfig.from_pretrained(converted / "cell")
    assert (config.pooling, config.depth_tokens, config.favor_redraw_interval) == ("all", True, 1000)
    assert (config.favor_stabilizer, config.sentinel_values, config.num_bins) == ("cell", False, 10)


def test_licence_is_printed_and_in_the_card(tiny, tmp_path):
    result = run(tiny, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "non-commercial" in result.stderr
    for entry in ENTRIES:
        card = ModelCard.load(tmp_path / "out" / entry / "README.md")
        assert (card.data.license, card.data.license_name) == ("other", "scfoundation-license")
        assert "non-commercial use only" in card.text
        assert "trained from scratch" not in card.text
        assert "{{" not in card.text
        assert "{%" not in card.text


# -- sizes and genes ------------------------------------------------------------------------------------------


def test_layout_is_that_of_the_released_shape(golden):
    keys = json.loads((golden / "keys_100M.json").read_text())
    expected = {name: tuple(shape) for name, (shape, _) in keys.items()}
    assert layout(XTrimoGeneConfig.preset("100M", depth_tokens=True)) == expected


def test_sizes_that_the_config_does_not_hold_come_from_the_tensors(changed, tmp_path):
    def narrow(checkpoint):
        entry = checkpoint["cell"]
        del entry["config"]["model_config"]["mae_autobin"]["bin_num"]
        del entry["config"]["dataset_config"]["rnaseq"]["bin_num"]
        weights = entry["state_dict"]
        prefix = "model.decoder.performer.net.layers.0."
        weights[f"{prefix}0.fn.fast_attention.projection_matrix"] = torch.randn(5, 8)
        for part, axis in (("w1.weight", 0), ("w1.bias", 0), ("w2.weight", 1)):
            weights[f"{prefix}1.fn.fn.{part}"] = weights[f"{prefix}1.fn.fn.{part}"].narrow(axis, 0, 7).clone()

    folder = convert_checkpoint(changed(narrow), tmp_path / "out", ["cell"])["cell"]
    model = AutoModelForPreTraining.from_pretrained(folder)
    config = model.config
    assert (config.num_bins, config.favor_num_features, config.decoder_intermediate_size) == (10, 5, 7)
    assert model.model.decoder.layers[0].self_attn.projection.shape == (5, 8)


def test_half_precision_becomes_float32(changed, tmp_path):
    def halve(checkpoint):
        weights = checkpoint["gene"]["state_dict"]
        weights["model.pos_emb.weight"] = weights["model.pos_emb.weight"].bfloat16()

    folder = convert_checkpoint(changed(halve), tmp_path / "out", ["gene"])["gene"]
    assert {str(tensor.dtype) for tensor in load_file(folder / "model.safetensors").values()} == {"torch.float32"}


def test_genes_of_another_panel_are_named_by_a_file_or_numbered(tiny, converted, tmp_path):
    assert AutoTokenizer.from_pretrained(converted / "rde").genes == [f"gene_{row}" for row in range(128)]
    names = XTrimoGeneTokenizer.default().genes[300:428][::-1]
    (tmp_path / "genes.txt").write_text("\n".join(names))
    result = run(tiny, "-o", tmp_path / "out", "--genes", tmp_path / "genes.txt", "--entry", "gene")
    assert result.exit_code == 0, result.output
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "gene")
    assert tokenizer.genes == names
    assert tokenizer.convert_tokens_to_ids(["<T>", "<S>", "<pad>"]) == [128, 129, 130]
    (tmp_path / "genes.txt").write_text("\n".join(["gene_name", *names]))
    message = fail(tiny, "-o", tmp_path / "new", "--genes", tmp_path / "genes.txt")
    assert "holds 129 gene names and entry 'cell'" in message
    assert "has 128 genes" in message
    assert not (tmp_path / "new").exists()


# -- errors ---------------------------------------------------------------------------------------------------


def test_everything_that_differs_is_named_at_once_and_nothing_is_written(changed, tmp_path):
    def spoil(checkpoint):
        cell, rde = checkpoint["cell"]["state_dict"], checkpoint["rde"]["state_dict"]
        del cell["model.encoder.norm.bias"]
        cell["model.surprise.weight"] = torch.zeros(2, 3)
        cell["model.to_final.weight"] = torch.zeros(2, 16)
        cell["model.norm.bias"] = torch.zeros(16, dtype=torch.int64)
        del rde["model.decoder.performer.net.layers.0.0.fn.fast_attention.projection_matrix"]
        del checkpoint["gene"]

    message = fail(changed(spoil), "-o", tmp_path / "out")
    for part in (
        "holds cell, rde, and differs from the scFoundation layout in 6 places",
        "entry 'cell': encoder.norm.bias (32,) is not there",
        "entry 'cell': surprise.weight (2, 3) is unknown",
        "entry 'cell': to_final.weight is (2, 16) and not (1, 16)",
        "entry 'cell': norm.bias is of int64 and no weight",
        "entry 'gene' is not there",
        "entry 'rde': decoder.performer.net.layers.0.0.fn.fast_attention.projection_matrix (16, 8) is not there",
    ):
        assert part in message
    assert not (tmp_path / "out").exists()


def test_a_whole_entry_converts_beside_a_broken_one(changed, tmp_path):
    path = changed(lambda checkpoint: checkpoint["cell"]["state_dict"].popitem())
    assert run(path, "-o", tmp_path / "out", "--entry", "gene").exit_code == 0
    assert "choose by --entry one that is whole" in fail(path, "-o", tmp_path / "new")


def model_config(checkpoint):
    return checkpoint["cell"]["config"]["model_config"]["mae_autobin"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda checkpoint: model_config(checkpoint)["decoder"].pop("dim_head"), "the config has no 'dim_head'"),
        (lambda checkpoint: model_config(checkpoint)["encoder"].update(heads=5), "32 is not a multiple of .* 5"),
        (lambda checkpoint: model_config(checkpoint).update(encoder=3), "the config describes no model"),
        (lambda checkpoint: model_config(checkpoint)["encoder"].update(depth=3), r"encoder\.2\.linear1\.weight .* not"),
        (lambda checkpoint: checkpoint["cell"].pop("config"), "config is not there, or no dictionary"),
        (lambda checkpoint: checkpoint.update(cell=torch.zeros(2)), "state_dict is not there, or no dictionary"),
        (lambda checkpoint: checkpoint["cell"]["state_dict"].update(epoch=3), "epoch is a int"),
        (
            lambda checkpoint: checkpoint["cell"]["state_dict"].update({"norm.bias": torch.zeros(16)}),
            "61 weights have 60 different names",
        ),
    ],
)
def test_a_wrong_entry_is_refused_with_the_reason(changed, tmp_path, spoil, message):
    with pytest.raises(ValueError, match=message) as caught:
        convert_checkpoint(changed(spoil), tmp_path / "out")
    assert "entry 'cell'" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_foreign_objects_are_named_and_read_only_where_trusted(changed, tmp_path):
    path = changed(lambda checkpoint: checkpoint["cell"]["config"].update(options=Namespace(seed=1)))
    message = fail(path, "-o", tmp_path / "out")
    assert "argparse.Namespace" in message
    assert "--trust-pickle" in message
    assert not (tmp_path / "out").exists()
    result = run(path, "-o", tmp_path / "out", "--trust-pickle")
    assert result.exit_code == 0, result.output


def test_what_is_no_checkpoint_is_refused(tiny, tmp_path):
    truncated, text, archive = tmp_path / "truncated.ckpt", tmp_path / "text.ckpt", tmp_path / "archive.ckpt"
    truncated.write_bytes(tiny.read_bytes()[: tiny.stat().st_size // 2])
    text.write_text("<html>404</html>")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "a")
    for path in (truncated, text, archive):
        message = fail(path, "-o", tmp_path / "out")
        assert f"{path} ({path.stat().st_size:,} bytes) cannot be read as a file of torch.save" in message
    torch.save([1, 2], tmp_path / "list.ckpt")
    assert "holds a list and no entries" in fail(tmp_path / "list.ckpt", "-o", tmp_path / "out")
    torch.save({f"weight{row}": torch.zeros(1) for row in range(8)}, tmp_path / "weights.ckpt")
    message = fail(tmp_path / "weights.ckpt", "-o", tmp_path / "out")
    assert "holds weight0, weight1, weight2, weight3, weight4, weight5, weight6, weight7, and differs" in message
    assert "is not a file" in fail(tmp_path / "none.ckpt", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_is_replaced_only_by_force(tiny, tmp_path):
    assert run(tiny, "-o", tmp_path / "out").exit_code == 0
    stale = tmp_path / "out" / "cell" / "stale.txt"
    stale.touch()
    assert "holds files already" in fail(tiny, "-o", tmp_path / "out")
    assert stale.exists()
    assert run(tiny, "-o", tmp_path / "out", "--force").exit_code == 0
    assert not stale.exists()


def test_folders_that_are_no_checkpoints_are_not_replaced(tiny, tmp_path):
    kept = tmp_path / "out" / "gene" / "mine.txt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert "gene exists and is no checkpoint folder" in fail(tiny, "-o", tmp_path / "out", "--force")
    assert kept.exists()


def test_an_interruption_leaves_nothing_that_looks_whole(tiny, tmp_path):
    def interrupt(folder, name, model):
        if name == "gene":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(tiny, tmp_path / "out", finish=interrupt)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cell"]
    assert AutoModel.from_pretrained(tmp_path / "out" / "cell").config.num_genes == 128
