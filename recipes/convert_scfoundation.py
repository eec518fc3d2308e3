"""Convert the authors' scFoundation checkpoint into checkpoint folders of this package, on the user's machine.

    models.ckpt                               folder/
      cell  config, state_dict   check          cell/  model.safetensors, config.json, tokenizer
      gene  config, state_dict  ------->        gene/  the same
      rde   config, state_dict   convert        rde/   the same

The file is memory-mapped and converted one entry at a time, so memory is bounded by one entry. All entries are checked
before anything is written, and a folder gets its name when it is complete.

`modeling_xtrimogene/convert_scfoundation.py` translates the names of the weights.
"""

import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from .. import families
from ..atomic import whole_folder
from ..modeling_xtrimogene.convert_scfoundation import UNUSED, convert_config, convert_state_dict
from ..records import first_names
from ..tokenization.expression_xtrimogene import VOCAB_FILES, packaged

USES = {
    "cell": "for embeddings of cells",
    "gene": "for embeddings of genes in the context of a cell (`model.contextual_gene_embeddings`)",
    "rde": "for embeddings of cells as if they had been read to another depth (`target_depth` of the tokenizer)",
}
ENTRIES = tuple(USES)
REDRAW_INTERVAL = 1_000  # training steps, released model
LICENCE_NAME = "scfoundation-license"
LICENCE_LINK = "https://github.com/biomap-research/scFoundation"
LICENCE_NOTE = (
    "Weights of scFoundation are under the scFoundation License of their authors, not under that of this package "
    "(Apache-2.0): non-commercial use only, revocable, with limits on derived works. Converting them changes nothing "
    f"about that. Read it at {LICENCE_LINK} before you use or share them."
)

CITATION = """\
@article{hao2024scfoundation,
  title   = {Large-scale foundation model on single-cell transcriptomics},
  author  = {Hao, Minsheng and Gong, Jing and Zeng, Xin and Liu, Chiming and Guo, Yucheng and Cheng, Xingyi and
             Wang, Taifeng and Ma, Jianzhu and Zhang, Xuegong and Song, Le},
  journal = {Nature Methods},
  volume  = {21},
  pages   = {1481--1491},
  year    = {2024}
}"""


def convert_checkpoint(
    path: str | os.PathLike,
    folder: str | os.PathLike,
    entries: Sequence[str] = ENTRIES,
    *,
    genes: str | os.PathLike | None = None,
    trust_pickle: bool = False,
    finish: Callable[[Path, str, Any], object] | None = None,
) -> dict[str, Path]:
    """Write a checkpoint folder for each entry of a scFoundation checkpoint; return entry -> folder.

    Weights and random features are copied from the file. The pooling is `all`, the default of the authors' script.
    Unlike in that script, the output of a cell does not depend on the other cells of its batch, and no value stands for
    mask or padding; for the script's behaviour, set `favor_stabilizer="batch"` and `sentinel_values=True` in the
    configuration.

    Args:
        path: The authors' `models.ckpt`, or a file of the same layout with other sizes.
        folder: Each entry is written to `folder/<entry>`; a folder of that name is replaced.
        entries: Names of entries among `cell`, `gene` and `rde`.
        genes: File with the gene names in the order of the ids, one a line; unless given the published panel for
            19,264 genes, and `gene_0`, `gene_1`, ... for any other number.
        trust_pickle: Also read objects other than tensors and plain containers, which runs code from the file.
        finish: Called with folder, entry and model before the folder gets its name, for example to write a card.

    Raises:
        ValueError: If a folder to replace is no checkpoint, the file cannot be read, an entry is missing, `genes` has
            another number of names, or weights differ from the scFoundation layout. The message names all differences.

    Example:
        >>> convert_checkpoint("models.ckpt", "scfoundation", ["cell"])  # doctest: +SKIP
        {'cell': PosixPath('scfoundation/cell')}
    """
    path, folder = Path(path), Path(folder)
    for final in (folder / name for name in entries):
        if final.exists() and not (final / "config.json").is_file() and (final.is_file() or any(final.iterdir())):
            raise ValueError(
                f"{final} exists and is no checkpoint folder, so it is not replaced: choose another output"
            )
    configs = check_entries(path, entries, trust_pickle)
    tokenizer = None
    if genes is not None:
        tokenizer = families.XTRIMOGENE.tokenizer(genes, packaged(VOCAB_FILES["gene_table_file"]), depth_tokens=True)
        for name, config in configs.items():
            if tokenizer.num_genes != config.num_genes:
                raise ValueError(
                    f"{genes} holds {tokenizer.num_genes:,} gene names and entry {name!r} of {path} has "
                    f"{config.num_genes:,} genes: give one name a line, in the order of the ids, without a header"
                )
    written = {}
    for name, config in configs.items():
        with whole_folder(folder / name) as unfinished:
            unfinished.mkdir(parents=True)
            model = load_entry(path, name, config, trust_pickle)
            model.save_pretrained(unfinished)
            (tokenizer or panel(config.num_genes, unfinished)).save_pretrained(unfinished)
            if finish is not None:
                finish(unfinished, name, model)
        del model  # before the next one is loaded
        written[name] = folder / name
    return written


def check_entries(path: Path, entries: Sequence[str], trust_pickle: bool) -> dict[str, Any]:
    """Return the configuration of each entry.

    Raises:
        ValueError: If an entry is missing or differs from the scFoundation layout.
    """
    checkpoint = read_checkpoint(path, trust_pickle)
    configs, problems = {}, []
    for name in entries:
        if name not in checkpoint:
            problems.append(f"entry {name!r} is not there")
            continue
        config, differences = check_entry(checkpoint[name])
        problems += [f"entry {name!r}: {difference}" for difference in differences]
        if config is not None:
            configs[name] = config
    if problems:
        raise ValueError(
            f"{path} holds {first_names(checkpoint) or 'nothing'}, and differs from the scFoundation layout in "
            f"{len(problems)} {'place' if len(problems) == 1 else 'places'}: {'; '.join(problems)}. Give the authors' "
            f"models.ckpt, or choose by --entry one that is whole"
        )
    return configs


def load_entry(path: Path, name: str, config: Any, trust_pickle: bool) -> PreTrainedModel:
    """Return the model of a checked entry; its weights are memory-mapped, so they go when the model goes."""
    state_dict = strip(read_checkpoint(path, trust_pickle)[name]["state_dict"])
    with torch.device("meta"):
        model = families.model_class(config, "reconstruct")(config)
    # The authors' loader copies into float32 as well, whatever the file holds.
    model.load_state_dict({key: tensor.float() for key, tensor in convert_state_dict(state_dict).items()}, assign=True)
    return model.eval()


def read_checkpoint(path: str | os.PathLike, trust_pickle: bool = False) -> Mapping[str, Any]:
    """Return the content of a file of `torch.save`, with memory-mapped tensors.

    Args:
        path: The file.
        trust_pickle: Also read objects other than tensors and plain containers, which runs code from the file.

    Raises:
        ValueError: If the file cannot be read, or holds other objects and `trust_pickle` is not set. The message names
            these objects.

    Example:
        >>> torch.save({"cell": {"config": {}, "state_dict": {"weight": torch.ones(2)}}}, "models.ckpt")
        >>> read_checkpoint("models.ckpt")["cell"]["state_dict"]["weight"].tolist()
        [1.0, 1.0]
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give the authors' models.ckpt")
    try:
        foreign = [] if trust_pickle else sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        if not foreign:
            checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=not trust_pickle)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as a file of torch.save: it is something else or "
            f"not whole; compare its size and checksum with those of its source ({str(error).splitlines()[0]})"
        ) from error
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{path} holds objects of a library that is not here as it was ({error}): install it, or save config and "
            f"state_dict of each entry as plain dictionaries"
        ) from error
    if foreign:
        raise ValueError(
            f"{path} holds objects other than tensors and plain containers: {', '.join(foreign)}. Reading them runs "
            f"code from the file: if you trust where it comes from, add --trust-pickle"
        )
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__} and no entries: give the authors' models.ckpt")
    return checkpoint


def check_entry(entry: Any) -> tuple[Any, list[str]]:
    """Return the configuration of an entry, and a line for each difference from the scFoundation layout.

    Sizes are taken from the entry's config. Sizes that the config lacks are taken from the shapes of tensors: the
    widths of feed-forward layers, the number of random features and, in some files, the number of bins.
    """
    parts = entry if isinstance(entry, Mapping) else {}
    lacking = [key for key in ("config", "state_dict") if not isinstance(parts.get(key), Mapping)]
    if lacking:
        return None, [f"{key} is not there, or no dictionary" for key in lacking]
    try:
        state_dict = strip(parts["state_dict"])
    except ValueError as error:
        return None, [str(error)]
    other = [f"{key} is a {type(value).__name__}" for key, value in state_dict.items() if not torch.is_tensor(value)]
    if other:
        return None, other
    other = [
        f"{key} is of {str(tensor.dtype).removeprefix('torch.')} and no weight"
        for key, tensor in state_dict.items()
        if key != UNUSED and not tensor.is_floating_point()
    ]

    def rows(key: str) -> int | None:
        return len(state_dict[key]) if key in state_dict and state_dict[key].ndim else None

    try:
        config = convert_config(
            {"bin_num": rows("token_emb.emb.weight")} | flat_config(parts["config"]),
            intermediate_size=rows("encoder.transformer_encoder.0.linear1.weight"),
            decoder_intermediate_size=rows("decoder.performer.net.layers.0.1.fn.fn.w1.weight"),
            favor_num_features=rows("decoder.performer.net.layers.0.0.fn.fast_attention.projection_matrix"),
            favor_redraw_interval=REDRAW_INTERVAL,
        )
    except KeyError as error:
        return None, [f"the config has no {error.args[0]!r}", *other]
    except (TypeError, AttributeError, StrictDataclassError) as error:
        return None, [f"the config describes no model ({error.__cause__ or error})", *other]
    expected = layout(config)
    missing = [f"{key} {shape} is not there" for key, shape in expected.items() if key not in state_dict]
    extra = [f"{key} {tuple(value.shape)} is unknown" for key, value in state_dict.items() if key not in expected]
    shapes = [
        f"{key} is {tuple(state_dict[key].shape)} and not {shape}"
        for key, shape in expected.items()
        if key in state_dict and tuple(state_dict[key].shape) != shape
    ]
    return config, [*missing, *extra, *shapes, *other]


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model section of an entry's config, updated with the section of the data set.

    Raises:
        KeyError: If the config has no model section.
    """
    return {**config["model_config"][config["model"]], **config.get("dataset_config", {}).get("rnaseq", {})}


def strip(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict without the prefix `model.` in its names, as the authors' loader does.

    Raises:
        ValueError: If two names are the same without the prefix.
    """
    stripped = {str(key).split("model.", 1)[-1]: value for key, value in state_dict.items()}
    if len(stripped) != len(state_dict):
        raise ValueError(f"{len(state_dict)} weights have {len(stripped)} different names behind 'model.'")
    return stripped


def layout(config: Any) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the scFoundation state dict for a model of this configuration.

    Source: the released checkpoint's layout.
    """
    bins, width, decoder = config.num_bins, config.hidden_size, config.decoder_hidden_size
    heads = config.decoder_num_attention_heads * config.decoder_head_dim
    # The type allows None, but a configuration always has numbers here.
    hidden, decoder_hidden = cast(int, config.intermediate_size), cast(int, config.decoder_intermediate_size)
    features = cast(int, config.favor_num_features)

    def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    def norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (size,), f"{name}.bias": (size,)}

    shapes: dict[str, tuple[int, ...]] = {
        **linear("token_emb.mlp", bins, 1),
        **linear("token_emb.mlp2", bins, bins),
        "token_emb.emb.weight": (bins, width),
        "token_emb.emb_mask.weight": (1, width),
        "token_emb.emb_pad.weight": (1, width),
        "pos_emb.weight": (config.num_positions + 1, width),
    }
    for index in range(config.num_hidden_layers):
        layer = f"encoder.transformer_encoder.{index}"
        shapes |= {
            f"{layer}.self_attn.in_proj_weight": (3 * width, width),
            f"{layer}.self_attn.in_proj_bias": (3 * width,),
            **linear(f"{layer}.self_attn.out_proj", width, width),
            **linear(f"{layer}.linear1", hidden, width),
            **linear(f"{layer}.linear2", width, hidden),
            **norm(f"{layer}.norm1", width),
            **norm(f"{layer}.norm2", width),
        }
    shapes |= {**norm("encoder.norm", width), **linear("decoder_embed", decoder, width), UNUSED: ()}
    for index in range(config.decoder_num_hidden_layers):
        layer = f"decoder.performer.net.layers.{index}"
        shapes |= {
            **norm(f"{layer}.0.norm", decoder),
            f"{layer}.0.fn.fast_attention.projection_matrix": (features, config.decoder_head_dim),
            **linear(f"{layer}.0.fn.to_q", heads, decoder),
            **linear(f"{layer}.0.fn.to_k", heads, decoder),
            **linear(f"{layer}.0.fn.to_v", heads, decoder),
            **linear(f"{layer}.0.fn.to_out", decoder, heads),
            **norm(f"{layer}.1.norm", decoder),
            **linear(f"{layer}.1.fn.fn.w1", decoder_hidden, decoder),
            **linear(f"{layer}.1.fn.fn.w2", decoder, decoder_hidden),
        }
    return {**shapes, **norm("decoder.norm", decoder), **norm("norm", decoder), **linear("to_final", 1, decoder)}


def panel(num_genes: int, folder: Path) -> Any:
    """Return the tokenizer of the published panel; for another number of genes, names are gene_0, gene_1, ..."""
    published = families.XTRIMOGENE.tokenizer.default(depth_tokens=True)
    if num_genes == published.num_genes:
        return published
    return families.XTRIMOGENE.tokenizer.from_genes(
        [f"gene_{row}" for row in range(num_genes)], folder, depth_tokens=True
    )
