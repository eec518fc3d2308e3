"""The evaluate command: a plan runs to a report, every bad plan is refused before anything runs."""

import json
from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

import xtrimogene
from xtrimogene.cli import app
from xtrimogene.eval import evaluate
from xtrimogene.eval.measures.results import Score
from xtrimogene.eval.tasks import synergy
from xtrimogene.eval.tasks.run import Run
from xtrimogene.hub_cards.card import CardContent, add_results, write_model_card
from xtrimogene.tokenization import reading

pytestmark = pytest.mark.usefixtures("quick_umap")

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1, "decoder_head_dim": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Cells with two conditions, an untrained checkpoint with a card, gene relations."""
    import scanpy as sc

    folder = tmp_path_factory.mktemp("evaluate")
    pbmc = sc.datasets.pbmc68k_reduced()[:150]
    obs = pbmc.obs[["bulk_labels"]].assign(half=["a" if row % 3 else "b" for row in range(150)])
    cells = anndata.AnnData(pbmc.raw.X.copy(), obs=obs, var=pbmc.raw.var[[]])
    cells.write_h5ad(folder / "cells.h5ad")
    default = xtrimogene.XTrimoGeneTokenizer.default()
    rows = np.unique(default.matcher.match(list(cells.var_names)).rows)
    genes = [default.genes[row] for row in rows if row >= 0]
    torch.manual_seed(0)
    model = xtrimogene.XTrimoGeneForPreTraining(xtrimogene.XTrimoGeneConfig(num_genes=len(genes), **SIZES))
    model.save_pretrained(folder / "small")
    xtrimogene.XTrimoGeneTokenizer.from_genes(genes, folder / "small").save_pretrained(folder / "small")
    write_model_card(
        folder / "small",
        CardContent(model_name="small", summary="A test.", config={}, metrics=[], training={}, data=[], command="x"),
    )
    pairs = "".join(f"{genes[row]},{genes[row + 1]}\n" for row in range(len(genes) - 1))
    (folder / "relations.csv").write_text("a,b\n" + pairs)
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_a_task_becomes_a_report_and_results_in_the_card(folder, tmp_path):
    task = ["--task", "embedding", "--data", folder / "cells.h5ad", "--label-key", "half", "--set", "max_cells=80"]
    result = run(folder / "small", *task, "--seeds", "0", "-o", tmp_path / "report", "--card", "--json")
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)["metrics"]
    assert metrics == json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["results"][0]["settings"]["cells"] == 80
    assert list(metrics["data"]) == [str(folder / "cells.h5ad")]
    assert "small" in (tmp_path / "report" / "report.html").read_text()
    card = ModelCard.load(folder / "small" / "README.md")
    names = {(each.task_name, each.dataset_name, each.metric_name) for each in card.data.eval_results}
    assert ("zero-shot embedding", "cells.h5ad", "k-NN macro-F1") in names
    # A second evaluation takes the place of the first.
    scores = [Score(**{**each, "value": 0.5}) for each in metrics["results"][0]["scores"]]
    add_results(folder / "small", scores, "small")
    again = ModelCard.load(folder / "small" / "README.md").data.eval_results
    assert len(again) == len(card.data.eval_results)
    assert {each.metric_value for each in again} == {0.5}


def test_a_plan_runs_several_tasks_and_reports_are_compared(folder, tmp_path):
    cells = str(folder / "cells.h5ad")
    plan = {
        "checkpoints": {"small": str(folder / "small")},
        "tasks": [
            {"task": "relations", "data": cells, "relations": [str(folder / "relations.csv")]},
            {
                "task": "embedding",
                "data": str(folder / "cells.h5ad"),
                "batch_key": "bulk_labels",
                "where": {"half": "a"},
            },
        ],
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    result = run("--plan", tmp_path / "plan.yaml", "-o", tmp_path / "one", "--seeds", "0")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert [each["task"] for each in metrics["results"]] == ["gene relations", "zero-shot embedding"]
    assert metrics["results"][1]["data"] == "cells.h5ad, half a"
    assert metrics["results"][1]["settings"]["cells"] == 100
    plan["checkpoints"] = {"other": str(folder / "small")}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert run("--plan", tmp_path / "plan.yaml", "-o", tmp_path / "two", "--seeds", "0").exit_code == 0
    compared = CliRunner().invoke(app, ["compare", str(tmp_path / "one"), str(tmp_path / "two")])
    assert compared.exit_code == 0, compared.output
    assert "small" in compared.stdout
    assert "other" in compared.stdout


CELLS = {"task": "embedding", "data": "cells.h5ad"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"task": "magic", "data": "cells.h5ad"}, "a task, one of embedding, annotation, few-labels, recovery"),
        ({"task": "embedding"}, "it needs data, a file"),
        ("embedding", "it needs data, a file"),
        (CELLS | {"label": "half"}, "task embedding has no option 'label': there are batch_key, corpus, label_key"),
        (CELLS | {"data": "absent.h5ad"}, "1 of 1 files of task embedding do not exist: absent.h5ad"),
        ({"task": "relations", "data": "cells.h5ad"}, "task relations needs relations"),
        ({"task": "annotation", "data": "cells.h5ad"}, "task annotation needs label_key"),
        (CELLS | {"label_key": "type"}, "cells.h5ad has no column 'type' in obs, only bulk_labels, half"),
        (CELLS | {"label_key": ["bulk_labels"]}, r"label_key is \['bulk_labels'\]: give text or None"),
        ({"task": "recovery", "data": "cells.h5ad", "sparsities": ["a"]}, "give a list of shares of zeros"),
        (CELLS | {"where": {"third": "a"}}, "cells.h5ad has no column 'third' in obs"),
        (CELLS | {"where": "half"}, "where is 'half': give columns of obs and values"),
        (CELLS | {"seeds": []}, "seeds are \\[\\]: give different whole numbers"),
        (CELLS | {"seeds": 0}, "seeds are 0: give different whole numbers"),
        (CELLS | {"seeds": [1, 1]}, "seeds are \\[1, 1\\]"),
        ({"task": "recovery", "data": "cells.h5ad"}, "two tasks of the plan are the same"),
        ({"task": "recovery", "data": "cells.h5ad", "sparsities": [98]}, "give a list of shares of zeros"),
        ({"task": "relations", "data": "cells.h5ad", "relations": "relations.csv"}, "give a list of files"),
        ({"task": "synergy", "data": "relations.csv"}, "task synergy needs drugs, expression, score_column"),
        (
            {"task": "relations", "data": "cells.h5ad", "relations": ["absent.txt"]},
            "1 of 2 files of task relations do not exist: absent.txt",
        ),
    ],
)
def test_a_plan_that_cannot_run_is_refused_before_anything_does(folder, tmp_path, monkeypatch, entry, message):
    monkeypatch.chdir(folder)
    ran = []
    task = replace(evaluate.TASKS["recovery"], evaluate=lambda *arguments: ran.append(1))
    monkeypatch.setitem(evaluate.TASKS, "recovery", task)
    with pytest.raises(ValueError, match=message):
        evaluate.run_plan([{"task": "recovery", "data": "cells.h5ad"}, entry], {"small": "small"}, tmp_path / "report")
    assert not ran
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": {"third": "a"}}, "has no column 'third' in obs, only bulk_labels, half"),
        ({"where": {"half": "c"}}, "no cell has half = c"),
    ],
)
def test_cells_that_are_not_there_are_named(folder, options, message):
    with pytest.raises(ValueError, match=message):
        reading.cells_of(folder / "cells.h5ad", **options)
    with pytest.raises(ValueError, match=r"holds no obs with labels: give an \.h5ad"):
        reading.cells_of(folder / "relations.csv")


@pytest.mark.parametrize("name", ["PCA", "random vectors", "small, not trained"])
def test_a_checkpoint_is_not_called_like_a_baseline(folder, tmp_path, name):
    with pytest.raises(ValueError, match=f"a checkpoint is called '{name}', as a baseline"):
        evaluate.run_plan([{"task": "recovery", "data": folder / "cells.h5ad"}], {name: "small"}, tmp_path / "report")


def test_ablations_are_configured_like_every_task(folder):
    entry = {
        "task": "ablation",
        "data": str(folder / "cells.h5ad"),
        "steps": 3,
        "sizes": ["tiny", "3M"],
        "label_key": "half",
    }
    evaluate.check_task(entry)
    with pytest.raises(ValueError, match="task ablation has no option 'step'"):
        evaluate.check_task(entry | {"step": 3})


def test_drawn_cells_keep_their_order(folder):
    cells = reading.cells_of(folder / "cells.h5ad", {"half": "a"}, 30)
    names = list(anndata.read_h5ad(folder / "cells.h5ad").obs_names)
    places = [names.index(name) for name in cells.obs_names]
    assert places == sorted(places)
    assert len(places) == 30
    assert set(cells.obs["half"]) == {"a"}


def test_repeated_measurements_of_synergy_are_said_and_conflicts_named(shared, monkeypatch):
    pytest.importorskip("rdkit", reason="needs rdkit: pip install rdkit")
    folder, said, given = shared / "data" / "drug_synergy", [], {}
    monkeypatch.setattr(
        synergy, "score_synergy", lambda tables, *rest, **options: given.update(scores=tables.scores) or []
    )
    files = {
        "drugs": folder / "oneil_drugs_smiles.csv",
        "expression": folder / "cell_features_954_ccle_tpm.csv.gz",
    }
    path = folder / "deepdds_labels_0_10_dev.csv.gz"
    problem = "single_label_classification"
    options = synergy.SynergyOptions(score_column="label", problem=problem, **files)
    found = synergy.evaluate_synergy(path, path.name, {}, options, Run(say=said.append))
    assert found.settings["measurements"] == 9907
    assert found.settings["measured more than once"] == 168
    conflicts = found.settings["left out, measured as both classes"]
    assert len(conflicts) == 21
    assert f"21 of them were measured as both classes and are left out: {conflicts[0]}, " in "\n".join(said)
    assert "9,907 measurements of" in said[0]
    kept = given["scores"]
    assert len(kept) == found.settings["scores"] == 9739 - 21 - found.settings["scores without expression"]
    assert set(kept.score) == {0, 1}
    # Numbers are averaged, none is left out.
    options = synergy.SynergyOptions(score_column="loewe_synergy", **files)
    found = synergy.evaluate_synergy(path, path.name, {}, options)
    assert found.settings["scores"] + found.settings["scores without expression"] == 9739


ONE = ["--task", "embedding", "--data", "cells.h5ad"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small", "--task", "embedding"], "give --task and --data, or a --plan"),
        (["--task", "embedding", "--data", "cells.h5ad"], "there is no checkpoint to evaluate"),
        (["absent/at/all", "--task", "embedding", "--data", "cells.h5ad"], "does not exist"),
        (["small", "other/small", "--task", "embedding", "--data", "cells.h5ad"], "two checkpoints have the same"),
        (
            ["small", "x=small", "x=small", "--task", "embedding", "--data", "cells.h5ad"],
            "two checkpoints have the same",
        ),
        (["small", *ONE, "--set", "max_cells"], "give name=value"),
        (["small", *ONE, "--set", "task=x"], "there is an option --task"),
        (
            ["small", *ONE, "--set", "where=[1"],
            "--set where=[1: while parsing",
        ),
        (
            ["small", *ONE, "--seeds", "a"],
            "--seeds is 'a': give whole numbers",
        ),
        (["small", "--plan", "absent.yaml"], "absent.yaml does not exist"),
        (["small", "--plan", "relations.csv"], "relations.csv holds no plan"),
        (["small", "--plan", "relations.csv", "--task", "embedding"], "leave out --task"),
        (["small", "--task", "embedding", "--data", "cells.h5ad"], "give --label-key, --batch-key or both"),
    ],
)
def test_bad_command_lines_are_one_line(folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    result = run(*arguments, "-o", tmp_path / "report")
    assert result.exit_code in (1, 2), result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_a_training_run_is_not_written_over(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    (tmp_path / "metrics.json").write_text("{}")
    command = ["small", "--task", "embedding", "--data", "cells.h5ad", "--label-key", "half", "-o", tmp_path, "--force"]
    result = run(*command)
    assert result.exit_code == 1
    assert (tmp_path / "metrics.json").read_text() == "{}"


def test_results_go_only_into_cards_that_are_there(folder, tmp_path):
    with pytest.raises(ValueError, match=r"has no README\.md to write results into"):
        add_results(tmp_path, [], "small")
    with pytest.raises(ValueError, match="none of 0 scores is of 'small'"):
        add_results(folder / "small", [], "small")
