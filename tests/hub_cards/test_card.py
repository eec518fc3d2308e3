import pytest
from huggingface_hub import ModelCard

from xtrimogene import families
from xtrimogene.eval.measures.results import Score
from xtrimogene.hub_cards import CardContent, DataSource, Metric, write_model_card
from xtrimogene.hub_cards.card import add_results

METRICS = [
    Metric("cell type annotation", "sorted PBMC", "accuracy", 0.93, {"logistic regression": 0.91}),
    Metric("cell type annotation", "sorted PBMC", "macro F1", 0.85, {"kNN": 0.86, "logistic regression": 0.87}),
    Metric("masked values", "sorted PBMC", "MSE", 0.41, {"gene mean": 0.44}, higher_is_better=False),
]
FACTS = {
    "model_name": "someone/xtrimogene-3m",
    "summary": 'A model of "blood" & <marrow>.',
    "config": {"hidden size": 128},
    "metrics": METRICS,
    "training": {"steps": 1000, "learning rate": 1e-4},
    "data": [DataSource("sorted PBMC", "CC BY 4.0", "10x Genomics", 3874, "0f" * 32)],
    "command": "xtrimogene pretrain cells.h5ad -o out",
    "pictures": {"Loss over steps": "loss.png"},
    "tags": ["blood"],
}


@pytest.fixture
def path(tmp_path):
    return write_model_card(tmp_path, CardContent(**FACTS))


def test_a_checkpoint_that_comes_with_the_package_is_loaded_from_there_and_promises_no_code(tmp_path, path):
    assert 'AutoModel.from_pretrained("someone/xtrimogene-3m", trust_remote_code=True)' in path.read_text()
    card = write_model_card(tmp_path, CardContent(**FACTS, comes_as="small")).read_text()
    assert 'AutoModel.from_pretrained(xtrimogene.checkpoint("small")).eval()' in card
    assert "trust_remote_code" not in card
    assert "```\n\n## Intended use and limits" in card


def test_card_goes_round_with_its_results(path):
    card = ModelCard.load(path)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "feature-extraction"
    assert card.data.license == "apache-2.0"
    assert {"single-cell", "biology", "gene-expression", "blood"} <= set(card.data.tags)
    assert [(r.task_name, r.dataset_name, r.metric_name, r.metric_value) for r in card.data.eval_results] == [
        (metric.task, metric.dataset, metric.name, metric.value) for metric in METRICS
    ]


def test_a_card_that_is_written_again_replaces_results_whatever_their_punctuation(tmp_path):
    metric = Metric("annotation, coarse types", "blood, held out", "F1 (macro)", 0.8)
    path = write_model_card(tmp_path, CardContent(**{**FACTS, "metrics": [metric]}))
    (found,) = ModelCard.load(path).data.eval_results
    types = found.task_type, found.dataset_type, found.metric_type
    assert types == ("annotation-coarse-types", "blood-held-out", "f1-macro")
    path.write_text(path.read_text().replace(found.task_type, "annotation,-coarse-types"))  # as 0.1.0 wrote it
    again = Score(metric.task, metric.dataset, "ours", metric.name, 0.9, 0.8, 1.0, spread=0.0, seeds=1, units=100)
    add_results(tmp_path, [again], "ours")
    assert [each.metric_value for each in ModelCard.load(path).data.eval_results] == [0.9]


def test_a_card_says_what_its_model_is_for(tmp_path):
    text = write_model_card(tmp_path, CardContent(**FACTS)).read_text()
    assert "cell types, perturbation and drug response" in text
    for changes in ({"is_classifier": True}, {"about": families.TXFM.about}):
        assert "drug response" not in write_model_card(tmp_path, CardContent(**FACTS, **changes)).read_text()


def test_card_says_where_a_baseline_wins(path):
    sentences = [line for line in path.read_text().splitlines() if "is better than this model" in line]
    assert sentences == [
        "* **logistic regression is better than this model** in macro F1 of cell type annotation "
        "on sorted PBMC: 0.8700 against 0.8500."
    ]


@pytest.mark.parametrize(("higher_is_better", "winners"), [(True, ["higher", "high"]), (False, ["lower", "low"])])
def test_winners_follow_the_direction_of_the_metric(higher_is_better, winners):
    baselines = {"low": 0.4, "lower": 0.3, "same": 0.5, "high": 0.6, "higher": 0.7}
    assert Metric("task", "data", "name", 0.5, baselines, higher_is_better).winners == winners


def test_card_holds_what_a_reader_needs(path):
    text = path.read_text()
    for fact in (
        'A model of "blood" & <marrow>.',
        'AutoModel.from_pretrained("someone/xtrimogene-3m")',
        "import xtrimogene",
        "trust_remote_code=True",
        "| sorted PBMC | 3,874 | CC BY 4.0 | 10x Genomics | `0f0f0f0f0f0f0f0f...` |",
        "xtrimogene pretrain cells.h5ad -o out",
        "![Loss over steps](loss.png)",
        "unofficial implementation of [arXiv 2311.15156]",
        "@inproceedings",
    ):
        assert fact in text
    assert "{{" not in text
    assert "{%" not in text


def test_rows_of_the_results_have_as_many_columns_as_their_head(path):
    table = [line for line in path.read_text().splitlines() if line.startswith(("| task", "| cell", "| masked"))]
    assert len(table) == 1 + len(METRICS)
    assert len({line.count("|") for line in table}) == 1


def test_card_without_results_says_so(tmp_path):
    path = write_model_card(tmp_path, CardContent(**{**FACTS, "metrics": [], "pictures": {}}))
    assert "Not evaluated." in path.read_text()
    assert ModelCard.load(path).data.eval_results is None


def test_a_card_describes_and_cites_the_family_of_the_model(tmp_path):
    for family, cited in ((families.TXFM, "kenyondean2026txfm"), (families.XTRIMOGENE, "gong2023xtrimogene")):
        text = write_model_card(tmp_path, CardContent(**FACTS, about=family.about)).read_text()
        assert family.about.description in text
        assert family.about.pretraining in text
        assert f"unofficial implementation of {family.about.paper}, not endorsed" in text
        assert cited in text
    of_others = families.Family(families.TXFM.config, families.TXFM.tokenizer, ()).about
    text = write_model_card(tmp_path, CardContent(**FACTS, about=of_others)).read_text()
    assert "unofficial implementation" not in text
    assert "bibtex" not in text
    assert of_others.a_model == "A TxFM"
