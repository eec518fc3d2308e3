"""The parts of fine-tuning; the whole is in test_training.py."""

import logging
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from xtrimogene import TxFMConfig, TxFMTokenizer, XTrimoGeneConfig, XTrimoGeneTokenizer
from xtrimogene.tokenization.collators import DataCollatorForExpression
from xtrimogene.training.arguments import CellTrainingArguments
from xtrimogene.training.data.dataset import cells_dataset, expression
from xtrimogene.training.data.splits import encode_labels, stratified_split
from xtrimogene.training.finetuning import (
    EMBEDDING_SCALE,
    annotation_model,
    balanced_class_weights,
    begin_head,
    check_head,
    coordinates,
    embeddings,
    end_head,
    finetune,
    finetuning_rate,
    logistic_classifier,
    names_better,
    renew_head,
    self_labelled,
)
from xtrimogene.training.objectives import objective_of
from xtrimogene.training.options import NewHead


def test_class_weights_may_be_whole_numbers(tiny_config, make_batch, tmp_path):
    config = tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    annotation_model(config, ["B", "T"]).save_pretrained(tmp_path)
    batch = {key: make_batch(config)[key] for key in ("input_ids", "values", "attention_mask")}
    labels, losses = torch.tensor([0, 1, 1]), []
    for weights in ([1, 3], [1.0, 3.0]):
        model = annotation_model(tmp_path, ["B", "T"], class_weights=weights).eval()
        losses.append(model(**batch, labels=labels).loss.item())
    assert losses[0] == losses[1]


@pytest.fixture(scope="module")
def blood(pbmc, tmp_path_factory, measured_genes):
    """A tokenizer of the measured genes, 300 blood cells as a dataset, and their types."""
    cells = pbmc.raw.to_adata()[:300].copy()
    genes = measured_genes(cells.var_names)
    tokenizer = XTrimoGeneTokenizer.from_genes(genes, tmp_path_factory.mktemp("panel"))
    ids, names = encode_labels(pbmc.obs["bulk_labels"][:300])
    return tokenizer, cells_dataset(tokenizer.read_counts(cells), ids), names


def small(tokenizer, names):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "pooling": "all"}
    sizes |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = XTrimoGeneConfig(num_genes=tokenizer.num_genes, decoder_head_dim=8, **sizes)
    return annotation_model(config, names)


@torch.no_grad()
def probabilities(model, tokenizer, dataset):
    batch = DataCollatorForExpression(tokenizer)([dataset[row] for row in range(len(dataset))])
    batch.pop("labels")
    return model.eval()(**batch).logits.softmax(-1).numpy()


@pytest.mark.parametrize("num_types", [2, None])
def test_an_annotator_begins_as_logistic_regression(blood, num_types):
    tokenizer, dataset, names = blood
    if num_types == 2:
        ids = (np.asarray(dataset["labels"][:]) == 0).astype(int)
        names, dataset = ["other", names[0]], dataset.remove_columns("labels").add_column("labels", ids)
        dataset = dataset.with_format("numpy")
    model = small(tokenizer, names)
    assert not model.classifier.anchor.is_set
    begin_head(model, tokenizer, dataset)
    values, labels = expression(dataset, tokenizer), np.asarray(dataset["labels"][:])
    expected = logistic_classifier().fit(values, labels).predict_proba(values)
    np.testing.assert_allclose(probabilities(model, tokenizer, dataset), expected, atol=1e-5)
    assert model.classifier.norm.is_set
    # What is set stays: another begin with other labels changes nothing.
    other = dataset.remove_columns("labels").add_column("labels", np.roll(labels, 1)).with_format("numpy")
    begin_head(model, tokenizer, other)
    np.testing.assert_allclose(probabilities(model, tokenizer, dataset), expected, atol=1e-5)


def test_an_annotator_of_an_anchored_model_begins_as_regression_on_genes_and_embedding(blood):
    tokenizer, dataset, names = blood
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "embedding_size": 8}
    config = XTrimoGeneConfig(num_genes=tokenizer.num_genes, anchored=True, decoder_num_hidden_layers=1, **sizes)
    model = annotation_model(config, names)
    values, labels = expression(dataset, tokenizer), np.asarray(dataset["labels"][:])
    telling = np.zeros((tokenizer.num_genes, 8), np.float32)  # the embedding says most of what the labels are
    telling[:, : len(names)] = logistic_classifier().fit(values, labels).coef_.T[:, :8]
    model.model.bag.components.copy_(torch.from_numpy(telling))
    begin_head(model, tokenizer, dataset)
    embedded = embeddings(model, tokenizer, dataset).numpy()
    features = np.hstack([values.toarray(), EMBEDDING_SCALE * embedded])
    expected = logistic_classifier().fit(features, labels).predict_proba(features)
    assert model.classifier.anchor.embedding_weight.any()
    np.testing.assert_allclose(probabilities(model, tokenizer, dataset), expected, atol=2e-2)
    # Of an embedding that says nothing, the regression has no part.
    model.model.bag.components.zero_()
    model.model.bag.bias.copy_(torch.arange(8.0))
    renew_head(model)
    begin_head(model, tokenizer, dataset)
    expected = logistic_classifier().fit(values, labels).predict_proba(values)
    assert not model.classifier.anchor.embedding_weight.any()
    np.testing.assert_allclose(probabilities(model, tokenizer, dataset), expected, atol=1e-5)


@pytest.mark.parametrize("anchored", [False, True])
def test_an_annotator_of_txfm_begins_training_as_a_regression_on_all_genes_although_it_shows_few(
    blood, pbmc, tmp_path, anchored
):
    names, tokenizer = blood[2], TxFMTokenizer.from_genes(blood[0].genes, tmp_path)
    ids = encode_labels(pbmc.obs["bulk_labels"][:300])[0]
    dataset = cells_dataset(tokenizer.read_counts(pbmc.raw.to_adata()[:300].copy()), ids)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_visible": 64}
    torch.manual_seed(0)
    config = TxFMConfig.preset("txfm-tiny", num_genes=tokenizer.num_genes, anchored=anchored, **sizes)
    model = annotation_model(config, names)
    begin_head(model, tokenizer, dataset)
    values, labels = expression(dataset, tokenizer), np.asarray(dataset["labels"][:])
    fitted = logistic_classifier().fit(values, labels).predict_log_proba(values)
    expected = -fitted[np.arange(300), labels].mean()
    batch = objective_of(config).task_collator(tokenizer, seed=0)(dataset.__getitems__(list(range(300))))
    assert batch["input_ids"].shape[1] == 64
    with torch.no_grad():
        first, of_whole = (
            model.train()(**each).loss.item()
            for each in (batch, DataCollatorForExpression(tokenizer)(dataset.__getitems__(list(range(300)))))
        )
        alone = model(**{name: part for name, part in batch.items() if not name.startswith("known")}).loss.item()
    assert first == pytest.approx(expected, abs=1e-4)
    assert of_whole == pytest.approx(expected, abs=1e-4)
    assert alone > 2 * expected  # what it was when the regression saw the genes shown alone


def test_a_head_that_a_family_cannot_have_is_refused_by_the_configuration_alone(tmp_path):
    config = TxFMConfig.preset("txfm-tiny", num_genes=4)
    config.save_pretrained(tmp_path)
    assert check_head(tmp_path, NewHead(peft="lora", pooling=None)).model_type == "txfm"
    with pytest.raises(ValueError, match=r"pooling is 'mean', and .* family TxFM, which has only the pooling 'cls'"):
        check_head(tmp_path, NewHead(pooling="mean"))
    with pytest.raises(ValueError, match=r"peft is 'xpressor', and .* TxFM, which has no latents: choose peft 'lora'"):
        check_head(tmp_path, NewHead(peft="xpressor"))


def test_features_name_cells_better_only_beyond_chance():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    noise = csr_matrix(rng.normal(size=(80, 5)))
    telling = csr_matrix(noise.toarray() + 3 * labels[:, None])
    assert names_better(telling, noise, labels, None)
    assert not names_better(noise, telling, labels, None)
    assert not names_better(noise, noise, labels, np.ones(80))
    assert not names_better(telling[:2], noise[:2], labels[[0, 40]], None)  # too few of each to hold one out


def test_a_regression_is_the_same_on_coordinates_as_on_features():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 10)
    features = csr_matrix(rng.poisson(1, (30, 200)) + np.eye(3)[labels] @ rng.poisson(1, (3, 200)))
    found = coordinates(features)
    assert found.shape[1] <= 30
    np.testing.assert_allclose(found @ found.T, (features @ features.T).toarray(), atol=1e-9)
    one, other = (logistic_classifier().set_params(tol=1e-8).fit(each, labels) for each in (found, features))
    np.testing.assert_allclose(one.predict_proba(found), other.predict_proba(features), atol=1e-5)


def test_a_label_without_cells_to_train_on_is_never_the_best(blood):
    tokenizer, dataset, names = blood
    model = small(tokenizer, [*names, "absent"])
    begin_head(model, tokenizer, dataset)
    found = probabilities(model, tokenizer, dataset)
    assert (found.argmax(1) < len(names)).all()
    assert found[:, -1].max() < 1e-3


def test_a_head_for_the_same_labels_goes_on_and_one_for_others_begins_anew(blood, tmp_path):
    tokenizer, dataset, names = blood
    model = small(tokenizer, names)
    begin_head(model, tokenizer, dataset)
    model.save_pretrained(tmp_path)
    same = annotation_model(tmp_path, names)
    assert torch.equal(same.classifier.anchor.weight, model.classifier.anchor.weight)
    other = annotation_model(tmp_path, [name + "?" for name in names])
    assert not other.classifier.anchor.is_set
    assert not other.classifier.norm.is_set
    model.config.classifier_anchored, model.classifier.anchor = False, None  # an annotator of before there were anchors
    model.save_pretrained(tmp_path / "before")
    assert annotation_model(tmp_path / "before", names).classifier.anchor is None


def test_a_new_head_on_an_older_annotator_is_one_of_today(blood, tmp_path):
    tokenizer, _, names = blood
    model = annotation_model(small(tokenizer, names).config, names, classifier_norm="batch", classifier_anchored=False)
    model.save_pretrained(tmp_path)
    assert annotation_model(tmp_path, names).config.classifier_norm == "batch"
    assert annotation_model(tmp_path, names[:2]).config.classifier_norm == "features"
    assert annotation_model(tmp_path, names[:2]).config.classifier_anchored


def test_a_head_is_renewed_although_it_was_loaded(blood, tmp_path):
    """It may have learned the cells that are to test it."""
    tokenizer, dataset, names = blood
    model = small(tokenizer, names)
    begin_head(model, tokenizer, dataset)
    torch.nn.init.ones_(model.classifier.out_proj.weight)
    model.save_pretrained(tmp_path)
    loaded = annotation_model(tmp_path, names)
    assert loaded.classifier.is_begun
    renew_head(loaded)
    assert not loaded.classifier.norm.is_set
    assert not loaded.classifier.anchor.is_set
    assert not loaded.classifier.out_proj.weight.any()


def test_one_type_to_train_on_is_refused(blood):
    tokenizer, dataset, names = blood
    of_one = dataset.select(np.flatnonzero(np.asarray(dataset["labels"][:]) == 1))
    with pytest.raises(ValueError, match=f"cells to train on are all {re.escape(names[1])}: at least 2 types"):
        begin_head(small(tokenizer, names), tokenizer, of_one)


def test_unlabelled_cells_are_labelled_by_a_regression_and_the_head_stays_new(blood):
    tokenizer, dataset, names = blood
    labelled, others = dataset.select(range(200)), dataset.select(range(200, 300))
    model = small(tokenizer, names)
    before = {name: part.clone() for name, part in model.state_dict().items()}
    sure = self_labelled(model, tokenizer, labelled, others)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(part, after[name]) for name, part in before.items())
    assert not model.classifier.is_begun
    of_cell = dict(zip(others["cell_index"][:].tolist(), others["labels"][:].tolist(), strict=True))
    true = np.array([of_cell[cell] for cell in sure["cell_index"][:].tolist()])
    assert 10 < len(sure) < 100
    assert (sure["labels"][:] == true).mean() > 0.8


def test_adapters_travel_with_what_their_head_begins_with(blood, tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft")
    tokenizer, dataset, names = blood
    torch.manual_seed(0)
    base = small(tokenizer, names)
    state = {name: part.clone() for name, part in base.state_dict().items()}
    lora = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"])
    adapted = peft.get_peft_model(base, lora)
    arguments = CellTrainingArguments(tmp_path / "run", max_steps=2, disable_tqdm=True, use_cpu=True)
    finetune(adapted, tokenizer, dataset, arguments=arguments)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = probabilities(adapted, tokenizer, dataset)
    fresh = small(tokenizer, names)
    fresh.load_state_dict(state)
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    np.testing.assert_allclose(probabilities(loaded, tokenizer, dataset), expected, atol=1e-5)
    is_right = expected.argmax(1) == np.asarray(dataset["labels"][:])
    assert is_right.mean() > 0.9  # as the regression that it begins with


def test_training_without_what_a_head_begins_with_is_warned_of(blood, caplog):
    tokenizer, dataset, names = blood
    batch = DataCollatorForExpression(tokenizer)([dataset[row] for row in range(4)])
    transformers_logger = logging.getLogger("transformers")
    propagates, transformers_logger.propagate = transformers_logger.propagate, True
    try:
        for begins in (False, True):
            caplog.clear()
            model = small(tokenizer, names).train()
            if begins:
                begin_head(model, tokenizer, dataset)
            model(**batch)
            model(**batch)
            said = [record for record in caplog.records if "begin_head" in record.getMessage()]
            assert len(said) == (0 if begins else 1)
    finally:
        transformers_logger.propagate = propagates


def test_a_head_for_other_labels_starts_anew(sizes, blood_panel, tmp_path):
    config = XTrimoGeneConfig(num_genes=blood_panel.num_genes, **sizes)
    first = annotation_model(config, ["B", "T"])
    first.save_pretrained(tmp_path)
    weight = first.classifier.dense.weight
    assert torch.equal(annotation_model(tmp_path, ["B", "T"]).classifier.dense.weight, weight)
    assert not torch.equal(annotation_model(tmp_path, ["NK", "T"]).classifier.dense.weight, weight)
    assert annotation_model(tmp_path, ["B", "NK", "T"]).classifier.out_proj.weight.shape[0] == 3


def test_fine_tuning_learns_real_cell_types(sizes, blood_panel, labelled, tmp_path):
    dataset, ids, names = labelled
    train, test = stratified_split(ids, 0.25, seed=0)
    torch.manual_seed(0)
    model = annotation_model(
        XTrimoGeneConfig(num_genes=blood_panel.num_genes, **sizes),
        names,
        balanced_class_weights(ids[train], len(names)),
    )
    arguments = CellTrainingArguments(
        tmp_path,
        num_train_epochs=3,
        learning_rate=2e-3,
        per_device_train_batch_size=32,
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = finetune(model, blood_panel, dataset.select(train), dataset.select(test), arguments=arguments)
    scores = trainer.evaluate()
    majority = np.bincount(ids[test]).max() / len(test)
    assert scores["eval_accuracy"] > majority + 0.2
    trainer.save_model(str(tmp_path / "annotator"))
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tmp_path / "annotator")
    assert list(config.id2label.values()) == names
    assert config.label2id == {name: index for index, name in enumerate(names)}


def test_class_weights_are_one_on_average():
    ids = np.array([0] * 90 + [1] * 10)
    weights = balanced_class_weights(ids, 2)
    assert abs(np.mean([weights[i] for i in ids]) - 1) < 1e-9
    assert abs(weights[1] / weights[0] - 3) < 1e-9


def test_features_of_whole_cells_are_shifted_to_those_that_a_head_of_txfm_learned_from(tmp_path):
    rng, genes = np.random.default_rng(0), [f"G{index}" for index in range(60)]
    tokenizer = TxFMTokenizer.from_genes(genes, tmp_path / "panel")
    counts = pd.DataFrame(rng.poisson(1.0, (40, 60)), columns=genes)
    dataset = cells_dataset(tokenizer.read_counts(counts), labels=[0, 1] * 20)
    sizes = {"num_genes": 60, "num_visible": 6, "inference_passes": 0, "layerscale_value": 1.0, "anchored": False}
    config = TxFMConfig.preset("txfm-tiny", **sizes)
    torch.manual_seed(0)
    model = annotation_model(config, ["B", "T"])
    begin_head(model, tokenizer, dataset)
    before = model.classifier.norm.mean.clone()
    whole = embeddings(model, tokenizer, dataset, DataCollatorForExpression(tokenizer))
    assert model.classifier.norm(embeddings(model, tokenizer, dataset)).mean(0).abs().max() < 1e-3
    assert model.classifier.norm(whole).mean(0).abs().max() > 0.1
    end_head(model, tokenizer, dataset)
    assert model.classifier.norm(whole).mean(0).abs().max() < 1e-3
    assert not torch.equal(model.classifier.norm.mean, before)
    assert finetuning_rate(config) == 1e-4


def test_the_regression_on_embeddings_is_shifted_with_them(tmp_path):
    rng, genes = np.random.default_rng(0), [f"G{index}" for index in range(60)]
    tokenizer = TxFMTokenizer.from_genes(genes, tmp_path / "panel")
    dataset = cells_dataset(
        tokenizer.read_counts(pd.DataFrame(rng.poisson(1.0, (40, 60)), columns=genes)), labels=[0, 1] * 20
    )
    sizes = {"num_genes": 60, "num_visible": 6, "inference_passes": 0, "embedding_size": 8, "layerscale_value": 1.0}
    torch.manual_seed(0)
    model = annotation_model(TxFMConfig.preset("txfm-tiny", anchored=True, **sizes), ["B", "T"])
    begin_head(model, tokenizer, dataset)
    model.model.bag.from_encoder.weight.data.normal_()  # so that embeddings depend on which genes are shown
    weight = model.classifier.anchor.embedding_weight.normal_()
    drawn = (embeddings(model, tokenizer, dataset) @ weight + model.classifier.anchor.bias).mean(0)
    end_head(model, tokenizer, dataset)
    whole = embeddings(model, tokenizer, dataset, DataCollatorForExpression(tokenizer))
    torch.testing.assert_close((whole @ weight + model.classifier.anchor.bias).mean(0), drawn, atol=1e-3, rtol=0)
