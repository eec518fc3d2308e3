"""Pushed by one process, loaded by others: by command or by method, with the package or with the code of the Hub."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import xtrimogene

GENES = ["TP53", "CD3D", "MS4A1", "NKG7", "LYZ", "GNLY"]
# One interpreter imports torch and transformers, and each process is forked from it, with caches of its own.
SCRIPT = """
import os, sys, traceback
import numpy as np, torch
import transformers.modeling_utils
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, dynamic_module_utils

place = sys.argv[1]


def load(package):
    options = {}
    if package == "with":
        import xtrimogene  # before `pipeline`, for whose import it waits
    else:
        sys.modules["xtrimogene"] = None  # as if it were not installed
        options = {"trust_remote_code": True}
    from transformers import pipeline

    counts = np.load(f"{place}/counts.npy")
    for pushed_by in ("command", "method"):
        tokenizer = AutoTokenizer.from_pretrained(f"me/by-{pushed_by}", **options)
        model = AutoModelForSequenceClassification.from_pretrained(f"me/by-{pushed_by}", **options).eval()
        assert type(model).__module__.startswith("xtrimogene." if package == "with" else "transformers_modules.")
        with torch.no_grad():
            logits = model(**tokenizer(counts, gene_names=tokenizer.genes)).logits
        about = {"revision": model.config._commit_hash}
        save_file({"logits": logits}, f"{place}/{package}-{pushed_by}.safetensors", metadata=about)
    annotate = pipeline("cell-annotation", model="me/by-method", device="cpu", **options)
    assert type(annotate).__module__.startswith("xtrimogene." if package == "with" else "transformers_modules.")
    cells = [dict(zip(tokenizer.genes, row)) for row in counts.tolist()]
    labels = [model.config.label2id[cell["label"]] for cell in annotate(cells)]
    assert labels == logits.argmax(-1).tolist()


for package in ("with", "without"):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0, package
        continue
    try:
        constants.HF_HUB_CACHE = f"{place}/{package}/hub"
        dynamic_module_utils.HF_MODULES_CACHE = f"{place}/{package}/code"
        load(package)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)
"""


@pytest.mark.slow  # processes of their own
def test_what_one_process_pushed_others_load_with_and_without_the_package(hub, succeed, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_genes": len(GENES)}
    model = xtrimogene.TxFMForSequenceClassification(xtrimogene.TxFMConfig(**sizes, num_labels=3)).eval()
    for weight in model.classifier.parameters():
        weight.data.normal_()
    model.save_pretrained(tmp_path / "types")
    tokenizer = xtrimogene.TxFMTokenizer.from_genes(GENES, tmp_path / "types")
    tokenizer.save_pretrained(tmp_path / "types")
    counts = np.random.default_rng(0).poisson(2, (4, 6)).astype(np.float32)
    np.save(tmp_path / "counts.npy", counts)
    with torch.no_grad():
        expected = model(**tokenizer(counts, gene_names=GENES)).logits

    succeed("push", tmp_path / "types", "me/by-command", "--private")
    model.push_to_hub("me/by-method", private=True)
    tokenizer.push_to_hub("me/by-method")
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True, text=True, env=os.environ | settings, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for pushed_by in ("command", "method"):
        repository = f"me/by-{pushed_by}"
        assert hub.repositories["model", repository].private
        said = set(hub.text(repository).splitlines())
        assert {"library_name: transformers", "pipeline_tag: feature-extraction"} <= said
        for package in ("with", "without"):
            path = tmp_path / f"{package}-{pushed_by}.safetensors"
            found = load_file(path)
            torch.testing.assert_close(found["logits"], expected)  # memory aligned otherwise rounds otherwise
            assert hub.revision(repository).encode() in path.read_bytes(), "the commit that was loaded is not known"
