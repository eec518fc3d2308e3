"""Two processes train as one: the same loss at equal global batch, every cell once an epoch, stop and go on."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

SIZES = {
    "num_genes": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_head_dim": 8,
}
NUM_CELLS, NUM_EPOCHS = 61, 2

# One interpreter imports everything; the processes are copies of it, so that no test waits for many imports.
PROCESSES = """
import json, os, signal, socket, sys, traceback
import numpy as np
import scipy.stats, sklearn.metrics  # which each copy would import for its scores
import torch
from transformers import TrainerCallback, set_seed
import xtrimogene
from xtrimogene.tokenization.collators import DataCollatorForMaskedExpression
from xtrimogene.training.data.dataset import cells_dataset
from xtrimogene.training.finetuning import annotation_model, finetune
from xtrimogene.training.pretraining import pretrain
from xtrimogene.training.arguments import CellTrainingArguments

torch.set_num_threads(1)
folder, sizes, num_cells, num_epochs = sys.argv[1], *map(json.loads, sys.argv[2:])
genes = [f"GENE{index}" for index in range(60)]
tokenizer = xtrimogene.XTrimoGeneTokenizer.from_genes(genes, folder + "/panel")
rng = np.random.default_rng(0)
counts = rng.poisson(5, (num_cells, 60)) * (rng.random((num_cells, 60)) < rng.uniform(0.2, 1, (num_cells, 1)))
cells = cells_dataset(tokenizer.read_counts(counts, gene_names=genes), rng.integers(0, 3, num_cells))
still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
seen = []
collate = DataCollatorForMaskedExpression.__call__


def recording(self, examples):
    seen.append([int(example["cell_index"]) for example in examples])
    return collate(self, examples)


DataCollatorForMaskedExpression.__call__ = recording


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def write(name, content):
    with open(f"{folder}/{name}.json", "w") as file:
        json.dump(content, file)


def train(name, world, rank, kill_at=None, is_sharded=False, dropout=False, batch=16, **changes):
    from transformers.distributed import DistributedConfig

    set_seed(3)
    config = xtrimogene.XTrimoGeneConfig(**sizes, **({} if dropout else still))
    model = xtrimogene.XTrimoGeneForPreTraining(config)
    arguments = CellTrainingArguments(
        f"{folder}/{name}", num_train_epochs=num_epochs, per_device_train_batch_size=batch // world, seed=3,
        learning_rate=1e-2, logging_steps=1, save_strategy="no" if is_sharded else "steps", save_steps=3,
        disable_tqdm=True, use_cpu=True,
    )
    if is_sharded:
        start = f"{folder}/start"
        if rank == 0:
            model.save_pretrained(start)
        torch.distributed.barrier()
        model = xtrimogene.XTrimoGeneForPreTraining.from_pretrained(
            start, distributed_config=DistributedConfig(fsdp_size=world)
        )
        assert any(type(weight).__name__ == "DTensor" for weight in model.parameters())
    trainer = pretrain(model, tokenizer, cells, arguments=arguments, resume=True, callbacks=[Kill(kill_at)], **changes)
    trainer.save_model(f"{folder}/{name}/end")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    write(f"{name} {rank}", {"losses": losses, "seen": seen})


def classify(name, world, rank):
    # Latents that are not pooled have no gradient, which DDP must be told.
    set_seed(3)
    config = xtrimogene.XTrimoGeneConfig(**sizes, **still, num_latents=2)
    arguments = CellTrainingArguments(f"{folder}/{name}", max_steps=3, disable_tqdm=True, use_cpu=True)
    trainer = finetune(annotation_model(config, ["B", "T", "NK"]), tokenizer, cells, arguments=arguments)
    write(f"{name} {rank}", trainer.state.global_step)


def run(name, world, make=train, **options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world):
        process = os.fork()
        if process:
            processes.append(process)
            continue
        if world > 1:
            where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "RANK": rank,
                     "LOCAL_RANK": rank}
            os.environ.update({key: str(value) for key, value in where.items()})
        try:
            make(name, world, rank, **options)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)  # not by way of gloo, which may abort a process that has done its work
    print(name, [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes], flush=True)


run("one", 1)
run("two", 2)
run("two sharded", 2, is_sharded=True)
run("two by tokens", 2, max_tokens=300)
run("two with dropout", 2, dropout=True, ema=0.9)
run("two killed", 2, dropout=True, ema=0.9, kill_at=5)
run("two killed", 2, dropout=True, ema=0.9)
run("two classify", 2, make=classify)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What the processes of each run wrote."""
    if not hasattr(os, "fork"):
        pytest.skip("needs a system on which processes can be copied")
    folder = tmp_path_factory.mktemp("processes")
    (folder / "script.py").write_text(PROCESSES)
    command = [sys.executable, str(folder / "script.py"), str(folder)]
    command += [json.dumps(value) for value in (SIZES, NUM_CELLS, NUM_EPOCHS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    results = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    print(done.stdout, done.stderr[-5000:])  # pytest shows it where a test fails
    return folder, results, done.stdout


def weights(runs, name):
    return load_file(runs[0] / name / "end" / "model.safetensors")


@pytest.mark.parametrize("name", ["two", "two sharded"])
def test_two_processes_train_as_one_at_equal_global_batch(runs, name):
    one, two = (runs[1][f"{which} 0"]["losses"] for which in ("one", name))
    assert len(one) == NUM_EPOCHS * 4
    np.testing.assert_allclose(two, one, rtol=1e-5)
    assert runs[1][f"{name} 1"]["losses"] == two
    expected, found = weights(runs, "one"), weights(runs, name)
    assert max((found[key] - expected[key]).abs().max().item() for key in expected) < 3e-4  # Adam makes much of little
    assert one[-1] < one[0]


@pytest.mark.parametrize("name", ["two", "two sharded", "two by tokens"])
def test_every_cell_comes_once_an_epoch(runs, name):
    own = [runs[1][f"{name} {rank}"]["seen"] for rank in range(2)]
    assert len(own[0]) == len(own[1])
    size = len(own[0]) // NUM_EPOCHS
    for start in range(0, NUM_EPOCHS * size, size):
        cells = [cell for part in own for batch in part[start : start + size] for cell in batch]
        assert sorted(cells) == list(range(NUM_CELLS))


def test_two_processes_that_were_killed_end_as_if_they_were_not(runs):
    assert "two killed [-9, -9]" in runs[2]
    assert "two killed [0, 0]" in runs[2]
    for rank in range(2):
        at_once, killed = (runs[1][f"two {name} {rank}"] for name in ("with dropout", "killed"))
        assert killed["losses"] == at_once["losses"]
        assert len(killed["seen"]) < len(at_once["seen"])  # what was done is not even read again
    expected, found = weights(runs, "two with dropout"), weights(runs, "two killed")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_two_processes_fine_tune(runs):
    assert runs[1]["two classify 0"] == runs[1]["two classify 1"] == 3
