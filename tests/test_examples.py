"""Every `>>>` example of the package runs, and what users call has one."""

import doctest
import functools
import importlib
import inspect
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import xtrimogene
from xtrimogene.families import LazyClass
from xtrimogene.options import Options

ROOT = Path(xtrimogene.__file__).parent
NOT_IN_THE_PACKAGE = {"tests", "docs", "build", ".venv"}
# Programs, which importing would start.
NOT_IMPORTED = {"xtrimogene.__main__", "xtrimogene.cli.__main__"}
MODULES = sorted(
    name
    for path in ROOT.rglob("*.py")
    if not NOT_IN_THE_PACKAGE.intersection(path.relative_to(ROOT).parts)
    and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    and path.parent.parent.name != "metric_modules"  # `evaluate` loads these by path, and their examples need a metric
    for name in [".".join(["xtrimogene", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")]
    if name not in NOT_IMPORTED
)
WITH_EXAMPLES = [
    name
    for name in MODULES
    for path in [ROOT.joinpath(*name.split(".")[1:])]
    if ">>>" in (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
]
# What README, docs and CONTRIBUTING show, and what other folders import: each has an example. The models, `tl` and all
# groups of options have one too and are not listed.
PUBLIC: list[str] = [
    "TxFMConfig.preset",
    "TxFMForPreTraining.decoder_gene_embeddings",
    "TxFMForPreTraining.predict_expression",
    "TxFMForPreTraining.reconstruct",
    "TxFMForPreTraining.set_mean_profile",
    "TxFMForSequenceClassification.freeze_encoder",
    "TxFMModel.static_gene_embeddings",
    "TxFMTokenizer.__call__",
    "TxFMTokenizer.read_counts",
    "XTrimoGeneConfig.preset",
    "XTrimoGeneForPreTraining.decode_latents",
    "XTrimoGeneForPreTraining.decoder_gene_embeddings",
    "XTrimoGeneForPreTraining.predict_expression",
    "XTrimoGeneForSequenceClassification.freeze_encoder",
    "XTrimoGeneModel.contextual_gene_embeddings",
    "XTrimoGeneModel.decode",
    "XTrimoGeneModel.static_gene_embeddings",
    "XTrimoGeneTokenizer.__call__",
    "XTrimoGeneTokenizer.default",
    "XTrimoGeneTokenizer.from_genes",
    "XTrimoGeneTokenizer.with_genes",
    "XTrimoGeneTokenizer.pad",
    "XTrimoGeneTokenizer.pad_rows",
    "XTrimoGeneTokenizer.read_counts",
    "XTrimoGeneTokenizer.tokenize_counts",
    "XTrimoGeneTokenizer.tokenize_values",
    "atomic.file_hash",
    "atomic.final_model",
    "atomic.whole_folder",
    "atomic.write_whole",
    "families.abilities",
    "families.family_of",
    "families.family_of_preset",
    "families.model_class",
    "families.sizes",
    "hub_cards.card.write_model_card",
    "hub_cards.gallery.gallery",
    "hub_cards.publish.push_checkpoint",
    "inference.calibration.Calibration.cross_fit",
    "inference.calibration.familiarity",
    "inference.calibration.stratified_groups",
    "inference.cell_model.CellModel",
    "inference.cell_model.CellModel.classify",
    "inference.cell_model.CellModel.decode",
    "inference.cell_model.CellModel.embed",
    "inference.cell_model.CellModel.load",
    "inference.cell_model.CellModel.predict_expression",
    "inference.cell_model.CellModel.read",
    "inference.cell_model.CellModel.untrained",
    "inference.devices.pick_device",
    "inference.export.export_encoder",
    "inference.gene_vectors.gene_vectors",
    "inference.neighbors.label_probabilities",
    "inference.running.run_cells",
    "modeling_xtrimogene.card_xtrimogene.merged",
    "modeling_xtrimogene.convert_scfoundation.convert_config",
    "modeling_xtrimogene.convert_scfoundation.convert_state_dict",
    "modeling_xtrimogene.count_loss_txfm.count_loss",
    "modeling_xtrimogene.count_loss_txfm.predicted_values",
    "modeling_xtrimogene.favor_xtrimogene.favor_attention",
    "modeling_xtrimogene.flops_xtrimogene.criss_cross_flops",
    "modeling_xtrimogene.flops_xtrimogene.encoder_flops",
    "modeling_xtrimogene.flops_xtrimogene.reconstruction_flops",
    "modeling_xtrimogene.flops_xtrimogene.step_flops",
    "modeling_xtrimogene.flops_xtrimogene.transformer_flops",
    "modeling_xtrimogene.heads_xtrimogene.FeatureNorm",
    "modeling_xtrimogene.pipelines_xtrimogene.CellAnnotationPipeline",
    "modeling_xtrimogene.pipelines_xtrimogene.CellEmbeddingPipeline",
    "modeling_xtrimogene.pretrained_xtrimogene.CellPreTrainedModel.push_to_hub",
    "modeling_xtrimogene.protein_xtrimogene.ProteinEmbedding",
    "modeling_xtrimogene.pretrained_xtrimogene.CellPreTrainedModel.add_genes",
    "modeling_xtrimogene.protein_xtrimogene.set_proteins",
    "modeling_xtrimogene.reconstruction_xtrimogene.reconstructed_values",
    "modeling_xtrimogene.reconstruction_xtrimogene.reconstruction_loss",
    "modeling_xtrimogene.sharing_xtrimogene.check_folder",
    "modeling_xtrimogene.sharing_xtrimogene.push_folder",
    "modeling_xtrimogene.xpressor_xtrimogene.add_xpressor",
    "modeling_xtrimogene.xpressor_xtrimogene.energy_distance",
    "modeling_xtrimogene.xpressor_xtrimogene.replace_latent",
    "options.Option",
    "options.build",
    "options.flat",
    "options.group",
    "options.leaves",
    "options.spelled_out",
    "pipelines.register_pipelines",
    "records.first_names",
    "records.plain",
    "tokenization.collators.DataCollatorForExpression",
    "tokenization.collators.DataCollatorForMaskedExpression",
    "tokenization.collators.packed",
    "tokenization.columns_xtrimogene.gene_columns",
    "tokenization.counts_xtrimogene.CountSource",
    "tokenization.counts_xtrimogene.find_counts",
    "tokenization.expression_xtrimogene.pad_right",
    "tokenization.files_xtrimogene.layer_names",
    "tokenization.files_xtrimogene.load",
    "tokenization.genes_xtrimogene.GeneMatch",
    "tokenization.genes_xtrimogene.GeneMatcher",
    "tokenization.genes_xtrimogene.GeneMatcher.best_match",
    "tokenization.genes_xtrimogene.GeneMatcher.match",
    "tokenization.genes_xtrimogene.GeneTable",
    "tokenization.labels.every_label",
    "tokenization.labels.label_text",
    "tokenization.masking.mask_cells",
    "tokenization.masking.mask_keys",
    "tokenization.normalization_xtrimogene.examine",
    "tokenization.panel_xtrimogene.InMemory",
    "tokenization.panel_xtrimogene.PanelCounts",
    "tokenization.panel_xtrimogene.PanelCounts.read",
    "tokenization.reading.annotated",
    "tokenization.reading.cells_of",
    "tokenization.reading.cells_with_counts",
    "tokenization.reading.check_columns",
    "tokenization.reading.open_cells",
    "tokenization.reading.read_cells",
    "tokenization.rows_xtrimogene.readable_by_row",
    "tokenization.stored.fingerprint_of",
    "tokenization.stored.open_cells",
    "tokenization.stored.size_of",
    "tokenization.visible_genes.DataCollatorForReconstruction",
    "tokenization.visible_genes.DataCollatorForVisibleGenes",
    "tokenization.visible_genes.draw_genes",
    "training.adapters.freeze_for_tuning",
    "training.anchoring.begin_latents",
    "training.data.corpus.Corpus.push_to_hub",
    "training.data.corpus.push_corpus",
]


class Finder(doctest.DocTestFinder):
    """Find the examples of decorated functions too: their globals are those of the decorator's module."""

    def _from_module(self, module, found):
        if inspect.isfunction(found):
            return found.__module__ == module.__name__
        return super()._from_module(module, found)


@pytest.fixture(scope="module")
def cells():
    import scanpy

    return scanpy.datasets.pbmc68k_reduced()[:5].copy()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a tiny pre-trained model, decoder included, and the tokenizer of the published panel."""
    folder = tmp_path_factory.mktemp("examples") / "checkpoint"
    torch.manual_seed(0)
    config = xtrimogene.XTrimoGeneConfig.preset("tiny", num_hidden_layers=1, decoder_num_hidden_layers=1)
    xtrimogene.XTrimoGeneForPreTraining(config).save_pretrained(folder)
    xtrimogene.XTrimoGeneTokenizer.default().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_give_what_they_show(name, cells, checkpoint, tmp_path, monkeypatch):
    module = importlib.import_module(name)
    tests = Finder(exclude_empty=True).find(module, name)
    assert any(test.examples for test in tests), f"{name} shows examples, and doctest finds none"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report = []
    try:
        for number, test in enumerate(tests):
            folder = tmp_path / str(number)
            folder.mkdir()
            monkeypatch.chdir(folder)
            if "checkpoint" in test.docstring:
                shutil.copytree(checkpoint, "checkpoint")
            test.globs.update(xtrimogene=xtrimogene, np=np, adata=cells.copy())
            runner.run(test, out=report.append)
    finally:
        torch.set_num_threads(threads)
    assert not runner.failures, "".join(report)


def groups_of_options(kind=Options):
    for group in kind.__subclasses__():
        if group.__module__.startswith("xtrimogene."):
            yield group
        yield from groups_of_options(group)


def resolved(name):
    """Return what a dotted name below the package stands for: `tokenization.masking.Masking`."""
    parts = name.split(".")
    for number in range(len(parts), -1, -1):
        module = ".".join(["xtrimogene", *parts[:number]])
        if module in MODULES:
            return functools.reduce(getattr, parts[number:], importlib.import_module(module))
    raise LookupError(name)


def test_what_users_call_has_an_example():
    for name in MODULES:  # a group is found once its module is imported
        importlib.import_module(name)
    wanted = {name: resolved(name) for name in PUBLIC}
    wanted |= {f"tl.{name}": getattr(xtrimogene.tl, name) for name in xtrimogene.tl.__all__ if name.islower()}
    for name in xtrimogene.__all__:
        if name.startswith("XTrimoGeneFor") or name == "XTrimoGeneModel":
            wanted[f"{name}.forward"] = getattr(xtrimogene, name).forward
        elif name.startswith("XTrimoGene"):
            wanted[name] = getattr(xtrimogene, name)
    wanted |= {f"{group.__module__}.{group.__name__}": group for group in groups_of_options()}
    assert not any(isinstance(found, LazyClass) for found in wanted.values())
    without = sorted(name for name, found in wanted.items() if ">>>" not in (found.__doc__ or ""))
    assert not without, f"{len(without)} of {len(wanted)} public definitions have no example: {', '.join(without)}"
