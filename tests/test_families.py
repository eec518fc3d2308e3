"""A family from outside of the package: it embeds, pre-trains and is evaluated, and nothing of the package knows it."""

import ast
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForPreTraining, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

import xtrimogene
from xtrimogene import XTrimoGeneTokenizer, families
from xtrimogene.eval.evaluate import run_plan
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.inference.options import Running
from xtrimogene.recipes.options import NewModel, Pretraining
from xtrimogene.recipes.pretrain import pretrain_files
from xtrimogene.tokenization.collators import IGNORED, DataCollatorForMaskedExpression
from xtrimogene.training import objectives
from xtrimogene.training.options import Optimization

pytestmark = pytest.mark.usefixtures("quick_umap")

# -- the family -------------------------------------------------------------------------------------------------------


class ToyConfig(PreTrainedConfig):
    """A sum of gene vectors, and a vector for each gene to predict its value by."""

    model_type = "toy"

    num_genes: int = 19_264
    hidden_size: int = 8
    vocab_size: int = 19_265
    pad_token_id: int = 19_264


class ToyTokenizer(XTrimoGeneTokenizer):
    """Values of another scale."""

    _auto_class = None

    def __init__(self, *args, target_sum=1e5, **kwargs):
        super().__init__(*args, target_sum=target_sum, **kwargs)


class ToyPreTrainedModel(PreTrainedModel):
    config_class = ToyConfig
    base_model_prefix = "model"


class ToyModel(ToyPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.genes = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.post_init()

    def get_input_embeddings(self):
        return self.genes

    def forward(self, input_ids, values, attention_mask=None, **kwargs):
        states = self.genes(input_ids) * values.unsqueeze(-1)
        pooled = states.sum(1)
        if attention_mask is not None:
            pooled = pooled.masked_fill(~attention_mask.bool().any(1, keepdim=True), torch.nan)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)


class ToyForPreTraining(ToyPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = ToyModel(config)
        self.decoder = nn.Linear(config.hidden_size, config.num_genes)
        self.post_init()

    def forward(self, input_ids, values, attention_mask, masked_ids, labels=None, num_items_in_batch=None, **kwargs):
        pooled = self.model(input_ids, values, attention_mask).pooler_output
        logits = self.decoder(pooled).gather(1, masked_ids.clamp(max=self.config.num_genes - 1))
        if labels is None:
            return ModelOutput(logits=logits)
        is_counted = labels != IGNORED
        total = (logits - labels).square().masked_fill(~is_counted, 0).sum()
        number = is_counted.sum() if num_items_in_batch is None else num_items_in_batch
        return ModelOutput(loss=total / number, logits=logits)

    def predict_expression(self, input_ids, values, attention_mask=None, gene_ids=None):
        pooled = self.model(input_ids, values, attention_mask).pooler_output
        predicted = self.decoder(pooled)
        return predicted if gene_ids is None else predicted[:, gene_ids], pooled


class ToyCollator:
    """Mask genes, and leave out what a toy does not look at."""

    def __init__(self, tokenizer, seed, options, epoch=None):
        self.masked = DataCollatorForMaskedExpression(tokenizer, options, seed=seed, epoch=epoch)
        self.settings = {"toy": True, **self.masked.settings}

    def __call__(self, examples):
        batch = self.masked(examples)
        return {name: batch[name] for name in ("input_ids", "values", "attention_mask", "masked_ids", "labels")}


class ToyObjective(objectives.Objective):
    def collator(self, tokenizer, seed, options=None, epoch=None):
        return ToyCollator(tokenizer, seed, options, epoch)

    def eval_collator(self, tokenizer, seed, options=None):
        return ToyCollator(tokenizer, seed + 1, options)

    def is_squared_error(self, config):
        return True


TOY = families.Family(
    ToyConfig,
    ToyTokenizer,
    (
        families.Member(ToyModel, frozenset({"embed"}), AutoModel),
        families.Member(ToyForPreTraining, frozenset({"embed", "reconstruct"}), AutoModelForPreTraining),
    ),
    {"toy-8": {}, "toy-4": {"hidden_size": 4}},
)


@pytest.fixture(scope="module", autouse=True)
def registered():
    families.register(TOY)
    objectives.register("toy", ToyObjective())
    yield
    del families.FAMILIES["toy"], objectives.OBJECTIVES["toy"]


@pytest.fixture(scope="module")
def cells(pbmc, tmp_path_factory):
    """Real blood cells with counts, as a file."""
    path = tmp_path_factory.mktemp("cells") / "blood.h5ad"
    obs = pbmc.obs[["bulk_labels"]].copy()
    anndata.AnnData(pbmc.raw.X.copy(), obs=obs, var=pbmc.raw.var[[]]).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def pretrained(cells, tmp_path_factory, registered):
    """A toy, pre-trained by the recipe that trains every family."""
    folder = tmp_path_factory.mktemp("toy") / "toy"
    optimization = Optimization(learning_rate=1e-2)
    recipe = Pretraining(epochs=3, new=NewModel(config="toy-8"), optimization=optimization)
    return folder, pretrain_files([cells], folder, recipe, say=lambda line: None)


# -- what it can do ---------------------------------------------------------------------------------------------------


def test_it_is_pre_trained_to_a_checkpoint_with_a_card(pretrained):
    folder, metrics = pretrained
    recovery = metrics["masked values of held-out cells"]
    assert recovery[TOY.about.name]["pearson"] > 0.3
    assert not (folder / "checkpoints").exists()
    card = (folder / "README.md").read_text()
    assert "blood.h5ad" in card
    assert "| num_genes | 19264 |" in card
    assert type(AutoModelForPreTraining.from_pretrained(folder)) is ToyForPreTraining
    assert type(AutoModel.from_pretrained(folder)) is ToyModel


def test_what_a_step_costs_is_not_logged_where_nobody_counted(pretrained):
    assert objectives.objective_of(ToyConfig()).flops(ToyConfig()) is None


def test_it_embeds_and_predicts(pretrained, cells, tmp_path):
    import zarr

    adata = anndata.read_h5ad(cells)[:20].copy()
    xtrimogene.tl.embed(adata, pretrained[0], device="cpu")
    model = ToyModel.from_pretrained(pretrained[0])
    with torch.no_grad():
        expected = model(**ToyTokenizer.from_pretrained(pretrained[0])(adata)).pooler_output
    np.testing.assert_allclose(adata.obsm["X_xtrimogene"], expected, rtol=1e-4, atol=1e-4)
    genes = list(adata.var_names[:3])
    xtrimogene.tl.embed_genes(adata, pretrained[0], tmp_path / "genes", what="expression", genes=genes, device="cpu")
    assert zarr.open(tmp_path / "genes")["expression"].shape == (20, 3)
    with pytest.raises(ValueError, match="ToyForPreTraining gives no embeddings of genes"):
        xtrimogene.tl.embed_genes(adata, pretrained[0], tmp_path / "others", device="cpu")
    with pytest.raises(ValueError, match="is a ToyForPreTraining and knows no cell types"):
        xtrimogene.tl.annotate(adata, pretrained[0], device="cpu")


def test_it_is_evaluated_beside_its_untrained_twin(pretrained, cells, tmp_path):
    tasks = [
        {"task": "embedding", "data": str(cells), "label_key": "bulk_labels", "max_cells": 150},
        {"task": "recovery", "data": str(cells), "sparsities": [0.995], "num_test": 20},
    ]
    found = run_plan(tasks, {"toy": pretrained[0]}, tmp_path / "report", seeds=[0], device="cpu", say=lambda line: None)
    embedding, recovery = ({(each["method"], each["metric"]): each["value"] for each in result["scores"]}
                           for result in found["results"])  # fmt: skip
    assert embedding["toy", "k-NN macro-F1"] > embedding["random numbers", "k-NN macro-F1"]
    assert ("toy, not trained", "k-NN macro-F1") in embedding
    assert recovery["toy", "Pearson"] > 0.2 > abs(recovery["toy, not trained", "Pearson"])


def test_an_untrained_twin_follows_from_its_seed(pretrained):
    loaded = CellModel.load(pretrained[0], Running(device="cpu"))
    state = torch.random.get_rng_state()
    one, same, other = (loaded.untrained(seed).gene_table() for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, loaded.gene_table())
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's draws change


# -- the registry -----------------------------------------------------------------------------------------------------


def test_abilities_are_those_of_the_classes_in_a_checkpoint():
    assert families.abilities(["XTrimoGeneForPreTraining"]) == {"embed", "decode", "reconstruct", "gene_rows"}
    assert families.abilities(["XTrimoGeneForSequenceClassification"]) == {"embed", "classify"}
    assert families.abilities(["XTrimoGeneForPerturbationPrediction"]) == {"perturb"}
    assert families.abilities(["ToyForPreTraining"]) == {"embed", "reconstruct"}
    assert families.abilities(["SomebodysModel"]) == families.abilities([]) == {"embed"}


def test_a_derived_model_can_do_what_its_base_can():
    class Derived(ToyForPreTraining):
        pass

    assert families.abilities_of(Derived(ToyConfig(num_genes=5, vocab_size=6, pad_token_id=5))) == {
        "embed", "reconstruct",
    }  # fmt: skip


def test_a_perturbation_checkpoint_embeds_no_cells(tmp_path, pbmc):
    config = xtrimogene.XTrimoGenePerturbationConfig(num_nodes=5, num_measured=3, num_expression_edges=2)
    xtrimogene.XTrimoGeneForPerturbationPrediction(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a XTrimoGeneForPerturbationPrediction and embeds no cells"):
        xtrimogene.tl.embed(pbmc[:2].copy(), tmp_path, device="cpu")


def test_what_is_not_registered_is_named():
    with pytest.raises(ValueError, match=r"no family has the model_type 'bert', only xtrimogene, .*toy"):
        families.family_of(_Bert())
    with pytest.raises(
        ValueError, match=r"no objective is known for the model_type 'bert', only for xtrimogene, .*toy"
    ):
        objectives.objective_of(_Bert())
    with pytest.raises(ValueError, match=r"no preset 'huge'; there are micro, tiny, 3M, 10M, 100M, .*toy-8, toy-4"):
        families.family_of_preset("huge")
    with pytest.raises(ValueError, match="no model of toy has the ability 'classify'; there are ToyModel, ToyFor"):
        families.model_class(ToyConfig(), "classify")


class _Bert:
    model_type = "bert"


def test_sizes_of_two_families_are_not_called_alike():
    class Another(PreTrainedConfig):
        model_type = "another"

    with pytest.raises(ValueError, match="a size of another is called 'tiny', as one of another family"):
        families.register(families.Family(Another, ToyTokenizer, (), {"tiny": {}}))
    assert "another" not in families.FAMILIES


# -- who may know a family --------------------------------------------------------------------------------------------

ROOT = Path(xtrimogene.__file__).parent
MAY_NAME_ONE = {
    "families.py",
    "eval/tasks/ablation.py",  # compares variants of one family
    "training/perturbation/fit.py",  # heads of one family
    "training/synergy/fit.py",
    "recipes/studies/samples.py",  # its latents are those of an Xpressor, which one family has
}


def names_in(path):
    """Names and texts of code that begin like the classes of the package's own family; docstrings are no code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value


def test_a_family_is_named_where_families_are_declared_and_nowhere_else():
    found = set()
    for folder in ("cli", "recipes", "hub_cards", "eval", "training", "inference"):
        for path in (ROOT / folder).rglob("*.py"):
            if any(name.startswith(("XTrimoGene", "TxFM")) for name in names_in(path)):
                found.add(path.relative_to(ROOT).as_posix())
    others = {path for path in found - MAY_NAME_ONE if not path.startswith("eval/cost/")}
    assert not others, "ask families.abilities, families.family_of or the Auto classes instead"


@pytest.mark.parametrize(
    ("model_type", "tokenizer", "abilities", "message"),
    [
        ("bert", families.XTRIMOGENE.tokenizer, {"embed"}, "'bert' is the model_type of a model of transformers"),
        ("toy-refused", dict, {"embed"}, "the tokenizer of toy-refused is .*dict.*ExpressionTokenizer"),
        ("toy-refused", None, {"embed"}, "the tokenizer of toy-refused is None"),
        ("toy-refused", families.XTRIMOGENE.tokenizer, {"embedd"}, "claims the ability 'embedd'; there are embed"),
    ],
)
def test_a_family_that_cannot_work_is_refused_and_not_added(model_type, tokenizer, abilities, message):
    config = type("RefusedConfig", (families.PreTrainedConfig,), {"model_type": model_type})
    member = families.Member(object, frozenset(abilities), families.AutoModel)
    with pytest.raises(ValueError, match=message):
        families.register(families.Family(config, tokenizer, (member,)))
    assert model_type not in families.FAMILIES
