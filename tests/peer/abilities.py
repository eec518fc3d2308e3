"""What else of the ecosystem takes our models: PEFT's methods, quantisation, export, offloading, several processes.

`make peer-tests` runs it; docs/transformers.md holds the outcomes. What needs a package that is missing is skipped.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.export import Dim

import xtrimogene
from xtrimogene import (
    TxFMConfig,
    TxFMForSequenceClassification,
    TxFMModel,
    XTrimoGeneConfig,
    XTrimoGeneForPreTraining,
    XTrimoGeneForSequenceClassification,
    XTrimoGeneModel,
)

SIZES = {"num_genes": 6000, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
DECODER = {
    "decoder_hidden_size": 12, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2, "decoder_head_dim": 6,
    "num_bins": 7, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
FAMILIES = ["XTrimoGene", "TxFM"]


def made(family, end, **changes):
    torch.manual_seed(0)
    config = (
        XTrimoGeneConfig(**SIZES, **DECODER, **changes) if family == "XTrimoGene" else TxFMConfig(**SIZES, **changes)
    )
    return getattr(xtrimogene, f"{family}{end}")(config).eval()


def cells(number=3, length=9, num_padding=2):
    generator = torch.Generator().manual_seed(number + length)
    ids = torch.stack([torch.randperm(6000, generator=generator)[:length].sort().values for _ in range(number)])
    mask = torch.ones_like(ids)
    if num_padding:
        mask[0, -num_padding:] = 0
    ids = ids.masked_fill(mask == 0, 6000)
    return {"input_ids": ids, "values": torch.rand(number, length, generator=generator) * 5, "attention_mask": mask}


def methods(peft):
    of_layers = ["q_proj", "v_proj"]
    saved = {"modules_to_save": ["classifier"]}
    return {
        "LoRA": peft.LoraConfig(target_modules=of_layers, **saved),
        "LoRA, all-linear": peft.LoraConfig(
            target_modules="all-linear", task_type="SEQ_CLS", exclude_modules=["classifier"]
        ),
        "DoRA": peft.LoraConfig(target_modules=of_layers, use_dora=True, **saved),
        "IA3": peft.IA3Config(target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"], **saved),
        "LoHa": peft.LoHaConfig(target_modules=of_layers, r=2, **saved),
        "VeRA": peft.VeraConfig(target_modules=of_layers, r=4, **saved),
        "OFT": peft.OFTConfig(target_modules=of_layers, oft_block_size=4, **saved),
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["LoRA", "LoRA, all-linear", "DoRA", "IA3", "LoHa", "VeRA", "OFT"])
def test_methods_of_peft_train_save_load_and_merge(family, method, tmp_path):
    peft = pytest.importorskip("peft")
    base = made(family, "ForSequenceClassification", num_labels=3, classifier_dropout=0.0)
    base.save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, methods(peft)[method]).eval()  # without dropout, losses can be compared
    batch = cells() | {"labels": torch.tensor([0, 0, 0])}
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(10):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = model(**cells()).logits
        fresh = type(base).from_pretrained(tmp_path / "base").eval()
        again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
        torch.testing.assert_close(again(**cells()).logits, expected)
        again.merge_adapter()
        torch.testing.assert_close(again(**cells()).logits, expected, atol=1e-4, rtol=1e-3)
        if method not in ("IA3", "VeRA", "LoHa", "OFT"):  # peft then takes every head for one linear layer
            again.unmerge_adapter()
            torch.testing.assert_close(again.merge_and_unload()(**cells()).logits, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_torchao_int8_weights(family, tmp_path):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    model = made(family, "Model")
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**cells()).pooler_output
        quantised = type(model).from_pretrained(tmp_path, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
        found = quantised.eval()(**cells()).pooler_output
    assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).min() > 0.99


def exported(model, batch, names):
    """The model, exported with free numbers of cells, genes and masked genes."""
    free = {"input_ids": {0: Dim.AUTO, 1: Dim.AUTO}, "values": {0: Dim.AUTO, 1: Dim.AUTO}}
    free |= {name: {0: Dim.AUTO, 1: Dim.AUTO} for name in names}
    return torch.export.export(model, (), batch, dynamic_shapes={name: free[name] for name in batch}, strict=False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("end", ["Model", "ForSequenceClassification", "ForPreTraining"])
def test_export_takes_other_batches_and_lengths(family, end):
    model = made(family, end)
    batch = cells(2, 11)
    names = ["attention_mask"]
    if end == "ForPreTraining":
        batch["masked_ids"] = torch.tensor([[3, 4, 5], [6, 7, 8]])
        names.append("masked_ids")
    program = exported(model, batch, names).module()
    for number, length in ((1, 5), (5, 700), (1, 6000)):
        other = cells(number, length)
        if end == "ForPreTraining":
            other["masked_ids"] = torch.arange(4).expand(number, -1)
        with torch.no_grad():
            expected, found = model(**other), program(**other)
        name = "pooler_output" if end == "Model" else "logits"
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_gives_the_same_embeddings(family, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = made(family, "Model")

    class Embedder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, values, attention_mask):
            return self.model(input_ids, values, attention_mask).pooler_output

    free = {0: Dim("cells"), 1: Dim("genes")}
    torch.onnx.export(
        Embedder(), tuple(cells(2, 11).values()), tmp_path / "model.onnx", dynamo=True,
        input_names=["input_ids", "values", "attention_mask"], output_names=["cell_embedding"],
        dynamic_shapes={"input_ids": free, "values": free, "attention_mask": free},
    )  # fmt: skip
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    for number, length in ((1, 5), (4, 800), (1, 6000)):
        batch = cells(number, length)
        (found,) = session.run(["cell_embedding"], {name: part.numpy() for name, part in batch.items()})
        with torch.no_grad():
            expected = model(**batch).pooler_output
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("cls", [XTrimoGeneModel, XTrimoGeneForPreTraining, XTrimoGeneForSequenceClassification,
                                 TxFMModel, TxFMForSequenceClassification])  # fmt: skip
def test_weights_may_stay_on_disk(cls, tmp_path):
    family = "TxFM" if cls.__name__.startswith("TxFM") else "XTrimoGene"
    model = made(family, cls.__name__.removeprefix(family))
    model.save_pretrained(tmp_path / "checkpoint")
    offloaded = cls.from_pretrained(tmp_path / "checkpoint", device_map={"": "disk"}, offload_folder=tmp_path / "off")
    with torch.no_grad():
        expected, found = model(**cells()), offloaded(**cells())
    name = "logits" if "logits" in expected else "pooler_output"
    torch.testing.assert_close(found[name], expected[name])


def test_two_processes_of_accelerate():
    script = Path(__file__).with_name("two_processes.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal weights") == 12
