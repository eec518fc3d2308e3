"""What travels, what is imported, and that a saved folder needs nothing but transformers."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from transformers.dynamic_module_utils import get_imports

import xtrimogene

ROOT = Path(xtrimogene.__file__).parent
TRAVELLING = {
    "modeling_xtrimogene": [
        "added_genes_xtrimogene.py",
        "attention_xtrimogene.py",
        "card_xtrimogene.py",
        "configuration_perturbation.py",
        "configuration_synergy.py",
        "configuration_txfm.py",
        "count_loss_txfm.py",
        "anchor_xtrimogene.py",
        "configuration_xtrimogene.py",
        "criss_cross_xtrimogene.py",
        "favor_xtrimogene.py",
        "gene_rows_xtrimogene.py",
        "heads_xtrimogene.py",
        "host_xtrimogene.py",
        "modeling_perturbation.py",
        "modeling_synergy.py",
        "modeling_txfm.py",
        "modeling_xtrimogene.py",
        "packed_xtrimogene.py",
        "pipelines_xtrimogene.py",
        "precision_xtrimogene.py",
        "pretrained_xtrimogene.py",
        "protein_xtrimogene.py",
        "reconstruction_xtrimogene.py",
        "sharing_xtrimogene.py",
        "value_embedding_xtrimogene.py",
        "varlen_xtrimogene.py",
        "xpressor_xtrimogene.py",
    ],
    "tokenization": [
        "columns_xtrimogene.py",
        "counts_xtrimogene.py",
        "expression_xtrimogene.py",
        "files_xtrimogene.py",
        "genes_xtrimogene.py",
        "normalization_xtrimogene.py",
        "panel_xtrimogene.py",
        "rows_xtrimogene.py",
        "sparse_xtrimogene.py",
        "tokenization_txfm.py",
        "tokenization_xtrimogene.py",
    ],
}
ALLOWED = {*sys.stdlib_module_names, "numpy", "torch", "transformers", "huggingface_hub", "safetensors"}
EXTRAS = {"performer_pytorch", "pyarrow"}  # imported only where a configuration or a file asks for them
# Started as plain files, by `accelerate launch`, they are no part of a package: their imports are absolute.
SCRIPTS = {"run_finetuning.py", "run_pretraining.py", "run_pretraining_no_trainer.py"}
# Each floor may import from those below it, and from itself.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"tl"},
    {"recipes"},
    {"hub_cards"},
    {"eval"},
    {"training"},
    {"inference"},
    {"families", "pipelines"},
    {"modeling_xtrimogene", "tokenization"},
    {"atomic", "options", "records", "released"},
]


def imports(path):
    """Pairs of (dots, module) that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


@pytest.mark.parametrize(("folder", "name"), [(folder, name) for folder in TRAVELLING for name in TRAVELLING[folder]])
def test_travelling_files_import_only_what_every_machine_has(folder, name):
    for dots, module in imports(ROOT / folder / name):
        if dots:
            assert dots == 1, f"{name} imports {'.' * dots}{module}: only files beside it travel with it"
            assert f"{module}.py" in TRAVELLING[folder], module
        else:
            package = module.split(".")[0]
            needed = ALLOWED if package in get_imports(ROOT / folder / name) else ALLOWED | EXTRAS
            assert package in needed, f"{name} imports {module}: everybody would need it"


def test_travelling_files_have_different_names():
    names = [name for folder in TRAVELLING.values() for name in folder]
    assert len(set(names)) == len(names)


def floor_of(name):
    """The place of a folder or module in FLOORS."""
    return next(place for place, names in enumerate(FLOORS) if name in names)


def targets(path):
    """The folders and modules at the top of the package that a file imports, however deep it lies, wherever in it."""
    depth = len(path.relative_to(ROOT).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:  # as many dots as lead to the top
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
        elif (isinstance(node, ast.ImportFrom) and node.level == 0) or isinstance(node, ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            own = [name for name in names if name.split(".")[0] == "xtrimogene"]
            is_script = path.parent == ROOT / "training" and path.name in SCRIPTS
            yield from (name.split(".")[1] for name in own) if is_script else own


SOURCES = sorted(
    path for names in FLOORS for name in names for path in [*(ROOT / name).rglob("*.py"), ROOT / f"{name}.py"]
    if path.is_file() and "metric_modules" not in path.parent.parent.name
)  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down_only(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in targets(path):
        assert not name.startswith("xtrimogene"), f"it imports {name}: first-party imports are relative"
        is_below = floor_of(name) > floor_of(own)
        assert name == own or is_below, f"{own} may not import {name}: arrows point down, {FLOORS}"


def test_every_file_is_on_a_floor():
    held = {path.parts[0].removesuffix(".py") for path in (p.relative_to(ROOT) for p in ROOT.rglob("*.py"))}
    beside = {"__init__", "tests", "docs", "build", "demo"}  # the last two are what `make demo` and pip write
    assert {name for name in held if not name.startswith(".")} - beside == set().union(*FLOORS)


# Files without a test of their own name: why.
EXEMPT: dict[str, str] = {}
# Tests of more than one file: what of.
WHOLE = {
    "test_package.py": "the package and how it travels",
    "test_examples.py": "examples of all docstrings",
    "test_parity.py": "the runs of the authors' script",
    "test_hub.py": "checkpoints that one process pushes and others load",
    "test_saved_by_0_1.py": "folders of version 0.1",
    "modeling_xtrimogene/test_golden.py": "outputs of the authors' code, layer by layer",
    "modeling_xtrimogene/test_favor_backend.py": "models whose decoder performer-pytorch computes",
    "training/test_processes.py": "trainings in several processes",
    "cli/test_fuzz.py": "damaged files of every kind, by every command that reads cells",
    "eval/test_metric_modules.py": "the folders of `eval/metric_modules`, which `evaluate` loads by themselves",
}


def mirrors(path):
    """Return the test files of which one stands for a source file."""
    stems = {path.stem, path.stem.removesuffix("_xtrimogene")}
    return {(path.parent / f"test_{stem}.py").as_posix() for stem in stems}


def test_tests_mirror_every_source_file():
    """`a/b/name.py` is tested in `tests/a/b/test_name.py`; the ending `_xtrimogene` may be left out."""
    sources = [path.relative_to(ROOT) for path in SOURCES if path.name not in ("__init__.py", "__main__.py")]
    held = {path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    untested = [path.as_posix() for path in sources if not mirrors(path) & held]
    assert untested == list(EXEMPT), "a file has no test of its name, or is exempt and has one"
    stray = held - set().union(*map(mirrors, sources)) - set(WHOLE)
    assert {name for name in stray if not name.startswith("docs/")} == set(), "tests of no source file"


def test_import_is_light():
    heavy = ["scanpy", "anndata", "matplotlib", "sklearn", "datasets", "accelerate", "pandas", "scipy.sparse",
             "transformers.trainer", "transformers.modeling_utils"]  # fmt: skip
    code = f"import sys, xtrimogene; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


FRESH = """
import json, sys
sys.modules["xtrimogene"] = None  # as if it were not installed
sys.modules["performer_pytorch"] = None  # an extra
import numpy as np, torch
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers import AutoModelForPreTraining, AutoModelForSequenceClassification
folder = sys.argv[1]
counts = np.load(folder + "/counts.npy")
names = json.load(open(folder + "/names.json"))
result = {}
for head, autos in {"pretraining": [AutoModel, AutoModelForPreTraining],
                    "annotation": [AutoModel, AutoModelForSequenceClassification], "base": [AutoModel]}.items():
    path = f"{folder}/{head}"
    config = AutoConfig.from_pretrained(path, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    batch = tokenizer(counts, gene_names=names)
    for auto in autos:
        model = auto.from_pretrained(path, trust_remote_code=True).eval()
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        with torch.no_grad():
            out = model(**batch)
        result[f"{head} {auto.__name__}"] = (out.logits if "logits" in out else out.pooler_output).double().tolist()
    model.save_pretrained(path + "-again")
    tokenizer.save_pretrained(path + "-again")
    again = autos[-1].from_pretrained(path + "-again", trust_remote_code=True).eval()
    with torch.no_grad():
        assert torch.equal(again(**batch)[0], model(**batch)[0])
json.dump(result, open(folder + "/result.json", "w"))
"""


def txfm_config(**changes):
    """A small configuration of TxFM."""
    return xtrimogene.TxFMConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, **changes)


@pytest.mark.parametrize("family", ["XTrimoGene", "TxFM"])
def test_saved_folders_load_in_a_fresh_interpreter_without_the_package(tmp_path, tiny_config, family):
    import numpy as np
    from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

    genes = ["TP53", "CD3D", "MS4A1", "NKG7", "LYZ", "GNLY"]
    counts = np.random.default_rng(0).poisson(2, (4, 6)).astype(np.float32)
    names = ["ENSG00000167286.3", "GRCh38_TP53", *genes[2:]]  # the folder must know more names than the panel's
    np.save(tmp_path / "counts.npy", counts)
    (tmp_path / "names.json").write_text(json.dumps(names))
    (tmp_path / "fresh.py").write_text(FRESH)
    torch.manual_seed(0)
    own = {"depth_tokens": True, "pooling": "all"} if family == "XTrimoGene" else {}
    config = (tiny_config if family == "XTrimoGene" else txfm_config)(num_genes=6, num_labels=3, **own)
    ends = {"base": "Model", "pretraining": "ForPreTraining", "annotation": "ForSequenceClassification"}
    depth = {"depth_tokens": True} if own else {}
    for head, end in ends.items():
        getattr(xtrimogene, f"{family}{end}")(config).save_pretrained(tmp_path / head)
        tokenizer = getattr(xtrimogene, f"{family}Tokenizer").from_genes(genes, tmp_path / "panel", **depth)
        tokenizer.save_pretrained(tmp_path / head)

    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "fresh.py"), str(tmp_path)],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result) == 5
    batch = tokenizer(counts, gene_names=names)
    autos = {cls.__name__: cls for cls in (AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification)}
    for key, theirs in result.items():
        head, auto = key.split()
        model = autos[auto].from_pretrained(tmp_path / head).eval()
        assert type(model).__module__.startswith("xtrimogene.")
        with torch.no_grad():
            out = model(**batch)
        ours = out.logits if "logits" in out else out.pooler_output
        assert torch.equal(ours.double(), torch.tensor(theirs, dtype=torch.float64)), key


FRESH_HEADS = """
import sys
if sys.argv[2] == "without":
    sys.modules["xtrimogene"] = None  # as if it were not installed
else:
    import xtrimogene
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer
for head in ("perturbation", "synergy"):
    path = f"{sys.argv[1]}/{head}"
    options = {"trust_remote_code": True} if sys.argv[2] == "without" else {}
    config = AutoConfig.from_pretrained(path, **options)
    model = AutoModel.from_pretrained(path, **options).eval()
    tensors = load_file(path + "/expected.safetensors")
    expected = tensors.pop("logits")
    with torch.no_grad():
        torch.testing.assert_close(model(**tensors).logits, expected)  # memory aligned otherwise rounds otherwise
    try:
        AutoModelForSequenceClassification.from_pretrained(path, **options)
    except ValueError as error:
        assert "Unrecognized configuration class" in str(error), error
    else:
        raise AssertionError(f"a {head} model is no cell type classifier")
    assert type(AutoTokenizer.from_pretrained(path, **options)).__name__ == "XTrimoGeneTokenizer"
    places = {cls.__module__.split(".")[0] for cls in (type(config), type(model))}
    print(type(config).__name__, type(model).__name__, *places)
"""


@pytest.mark.parametrize("package", [pytest.param("with", marks=pytest.mark.slow), "without"])
def test_heads_load_with_auto_classes_in_a_fresh_interpreter(tmp_path, tiny_config, package):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    sizes = {"num_nodes": 5, "num_measured": 3, "num_expression_edges": 2, "pad_token_id": 6}
    perturbation = xtrimogene.XTrimoGeneForPerturbationPrediction(xtrimogene.XTrimoGenePerturbationConfig(**sizes))
    perturbation.gene_ids.copy_(torch.arange(5))
    fields = {"drug_features": ["a", "b"], "problem_type": "regression", "num_labels": 1}
    synergy = xtrimogene.XTrimoGeneForDrugSynergy(
        xtrimogene.XTrimoGeneSynergyConfig(encoder_config=tiny_config(num_genes=6), **fields)
    )
    tokenizer = xtrimogene.XTrimoGeneTokenizer.from_genes(["TP53", "CD3D", "MS4A1", "NKG7", "LYZ", "GNLY"], tmp_path)
    heads = {
        "perturbation": (perturbation, {
            "perturbation_ids": torch.tensor([[1, 4], [3, 6]]), "control_values": torch.rand(2, 3),
        }),
        "synergy": (synergy, {
            "drug_a": torch.rand(2, 2), "drug_b": torch.rand(2, 2), "input_ids": torch.tensor([[0, 3], [4, 6]]),
            "values": torch.rand(2, 2),
        }),
    }  # fmt: skip
    for name, (model, inputs) in heads.items():
        for weight in model.parameters():
            weight.data.add_(0.1 * torch.randn_like(weight))  # a new perturbation model has zeros
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        with torch.no_grad():
            save_file({**inputs, "logits": model.eval()(**inputs).logits}, tmp_path / name / "expected.safetensors")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH_HEADS, str(tmp_path), package],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    place = "xtrimogene" if package == "with" else "transformers_modules"
    assert done.stdout.splitlines() == [
        f"XTrimoGenePerturbationConfig XTrimoGeneForPerturbationPrediction {place}",
        f"XTrimoGeneSynergyConfig XTrimoGeneForDrugSynergy {place}",
    ]


def test_saved_folders_hold_no_pickle(tmp_path, tiny_config):
    xtrimogene.XTrimoGeneForPreTraining(tiny_config()).save_pretrained(tmp_path)
    xtrimogene.XTrimoGeneTokenizer.default().save_pretrained(tmp_path)
    endings = {"".join(path.suffixes) for path in tmp_path.iterdir()}
    assert endings == {".json", ".safetensors", ".py", ".txt", ".tsv.gz"}


def test_flops_of_the_model_follow_the_formula():
    """The decoder as written, nothing shared: torch's counter agrees with the formula."""
    from xtrimogene.eval.cost.flops import count_flops, decoder_flops
    from xtrimogene.modeling_xtrimogene.flops_xtrimogene import encoder_flops

    config = xtrimogene.XTrimoGeneConfig.preset("3M", favor_stabilizer="batch", num_genes=3000)
    model = xtrimogene.XTrimoGeneModel(config).eval()
    ids = torch.arange(200).unsqueeze(0)
    model.set_attn_implementation("eager")  # torch counts no fused attention
    with torch.no_grad():
        hidden = model(ids, torch.ones(1, 200)).last_hidden_state
        encoder = count_flops(lambda: model(ids, torch.ones(1, 200)))
        decoder = count_flops(lambda: model.decode(hidden, ids))
    expected_encoder = encoder_flops(200, config.hidden_size, config.num_hidden_layers)
    expected_decoder = decoder_flops(
        3000, config.hidden_size, config.decoder_hidden_size, config.decoder_num_attention_heads,
        config.decoder_head_dim, config.favor_num_features, config.decoder_num_hidden_layers,
    )  # fmt: skip
    assert abs(encoder / expected_encoder - 1) < 0.03
    # The formula leaves out the value embedding, 3 % in a panel as small as this.
    assert abs(decoder / expected_decoder - 1) < 0.05


def test_the_lowest_versions_that_are_tested_are_those_that_are_allowed():
    """What `make test-lowest` installs has to follow pyproject.toml: a bound that nobody runs is a guess."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    bounds = {}
    for line in [*project["dependencies"], *extras["peft"], *extras["synergy"], *extras["test"]]:
        needed = Requirement(line)
        (bound,) = needed.specifier
        assert bound.operator == ">=", line
        assert bounds.setdefault(needed.name, Version(bound.version)) == Version(bound.version), line
    lines = [line for line in (ROOT / "constraints-lowest.txt").read_text().splitlines() if not line.startswith("#")]
    tested = {name: Version(version) for name, version in (line.split("==") for line in lines)}
    assert tested == bounds


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else_and_runs_where_it_is_installed(tmp_path):
    """The environment borrows the dependencies of this one; `make wheel` installs them too."""
    import sysconfig
    import zipfile

    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"xtrimogene"}
    assert "xtrimogene/cli/app.py" in names
    assert not any("/tests/" in name for name in names)

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "own"], check=True)
    python = tmp_path / "own/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
    (site,) = (tmp_path / "own").glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"])
    subprocess.run([python, "-I", ROOT / "tests/installed.py"], check=True)
