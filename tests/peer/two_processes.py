"""A loop of accelerate as users write it, on two processes that `abilities.py` starts."""

import itertools

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from xtrimogene import (
    TxFMConfig,
    TxFMForPreTraining,
    TxFMForSequenceClassification,
    XTrimoGeneConfig,
    XTrimoGeneForPreTraining,
    XTrimoGeneForSequenceClassification,
)

SIZES = {"num_genes": 60, "num_labels": 3, "hidden_size": 16}
CONFIGS = {
    "XTrimoGene": XTrimoGeneConfig.preset("tiny", anchored=False, **SIZES),
    "XTrimoGene, anchored": XTrimoGeneConfig.preset("tiny", num_batches=2, **SIZES),
    "TxFM": TxFMConfig(num_genes=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_labels=3),
}
MODELS = {
    "XTrimoGene": (XTrimoGeneForPreTraining, XTrimoGeneForSequenceClassification),
    "TxFM": (TxFMForPreTraining, TxFMForSequenceClassification),
}


def batch_of(cls, number, length):
    """Return a batch of cells of other lengths on each process."""
    ids = torch.arange(4, 4 + length).expand(number, -1)
    batch = {"input_ids": ids, "values": torch.rand(number, length), "attention_mask": torch.ones_like(ids)}
    if not cls.__name__.endswith("ForPreTraining"):
        return batch | {"labels": torch.arange(number) % 3}
    masked = torch.arange(4).expand(number, -1)
    batch |= {"masked_ids": masked, "labels": torch.rand(number, 4)}
    return batch if "XTrimo" in cls.__name__ else batch | {"expressed_ids": masked, "expressed_values": batch["labels"]}


def main():
    kwargs = DistributedDataParallelKwargs(find_unused_parameters=False)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[kwargs])
    for family, place, is_checkpointed in itertools.product(CONFIGS, (0, 1), (False, True)):
        torch.manual_seed(0)
        cls = MODELS[family.split(",")[0]][place]
        model = cls(CONFIGS[family]).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
        for step in range(3):
            batch = batch_of(cls, 3, 9 + step + accelerator.process_index)
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()
        weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
        one, other = accelerator.gather(weights.unsqueeze(0))
        assert torch.equal(one, other)
        accelerator.print("equal weights", cls.__name__, is_checkpointed)


if __name__ == "__main__":
    main()
    torch.distributed.destroy_process_group()
