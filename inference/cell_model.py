"""A checkpoint and its tokenizer on a device: read cells, embed them, name their types, predict their genes."""

import copy as copying
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from .. import families
from ..atomic import check_checkpoint
from ..modeling_xtrimogene.anchor_xtrimogene import forget_encoder
from ..modeling_xtrimogene.reconstruction_xtrimogene import per_10k
from ..tokenization.reading import CellInput, ModelInput
from .adapters import AdapterFolder
from .devices import pick_device, pick_dtype
from .options import Running
from .saved import Saved

if TYPE_CHECKING:
    from ..tokenization.panel_xtrimogene import PanelCounts


Task = Literal["embed", "reconstruct", "classify"]


@dataclass(frozen=True)
class CellModel:
    """A model and its tokenizer, ready for inference.

    Cells without counts on the panel get NaN rows, and every cell keeps its place.
    Letters: D width of the embedding, Q genes, E width of the decoder, C classes.

    Attributes:
        model: The model, on its device.
        tokenizer: The tokenizer of the model.
        target_depth: T: log10 of a total count, as 4 or `t4`; `f2` for twice the depth of the cell, `a1` for ten times;
            None for the depth of the cell.
        parity: Whether to compute what the scFoundation script computes.
        adapter: Folder of the PEFT adapter that takes part, on the Hub `user/name@commit`, or its name in a loaded
            `PeftModel`; empty without one.

    Example:
        >>> from xtrimogene.inference.cell_model import CellModel
        >>> loaded = CellModel.load("checkpoint")
        >>> cells = loaded.read(adata)
        >>> loaded.embed(cells).shape
        (5, 64)
    """

    model: Any
    tokenizer: Any
    target_depth: float | str | None = None
    parity: bool = False
    adapter: str = ""

    @classmethod
    def load(
        cls,
        model: str | os.PathLike | Any,
        running: Running | None = None,
        *,
        task: Task = "embed",
        pooling: str | None = None,
        target_depth: float | str | None = None,
        parity: bool = False,
    ) -> "CellModel":
        """Load a checkpoint with its tokenizer.

        Args:
            model: Checkpoint folder, Hub name (with `@` and a branch, tag or commit, if not `main`) or name of one that
                comes with the package, also of a PEFT adapter, which is merged into its base; or a loaded model, which
                is not changed or moved. All files come from one commit.
            running: Device and precision.
            task: What the model is for. `classify` needs the head of a classifier, `reconstruct` a decoder.
            pooling: How cells are pooled; as the checkpoint says unless given.
            target_depth: T: log10 of a total count, as 4 or `t4`; `f2` for twice the depth of the cell, `a1` for ten
                times; None for the depth of the cell.
            parity: Whether to compute what the scFoundation script computes.

        Raises:
            ValueError: If the folder holds no checkpoint, it cannot do the task, model and tokenizer differ, or options
                exclude each other.

        Example:
            >>> CellModel.load("checkpoint", task="reconstruct").tokenizer.num_genes
            19264
        """
        running, name = running or Running(), ""
        if hasattr(model, "get_base_model"):  # a model of peft, whose adapters stay in its layers
            tuned: Any = model
            name, model = ", ".join(tuned.active_adapters), tuned.get_base_model()
        is_folder = isinstance(model, (str, os.PathLike))
        place = Saved.of(model)
        path = place.path
        if not path:
            raise ValueError(
                f"this {type(model).__name__} was not loaded from a folder, so its tokenizer is not known: save both "
                f"with save_pretrained and give the folder"
            )
        check_checkpoint(path)
        adapter = AdapterFolder.find(place) if is_folder else None
        if parity and adapter is not None:
            raise ValueError(f"{path} is an adapter, and parity is that of scFoundation's own models: leave it out")
        if is_folder:
            architectures = (adapter or place.config()).architectures or ["model"]
            check_ability(path, task, architectures, families.abilities(architectures))
        else:
            check_ability(path, task, [type(model).__name__], families.abilities_of(model))
        if parity and running.dtype == "bfloat16":
            raise ValueError("dtype is bfloat16, and parity is that of float32: leave one of them out")
        if pooling not in (None, "all", "max", "mean", "S", "T", "xpressor"):
            raise ValueError(f"pooling is {pooling!r}: give all, max, mean, S, T or xpressor")
        loaded = from_folder(place, running, task, parity, adapter) if is_folder else shared(model, task, parity)
        tokenizer = (place if adapter is None else adapter).tokenizer()
        if task != "classify" and target_depth is not None and not tokenizer.depth_tokens:
            raise ValueError(
                f"target_depth is {target_depth}, but {path} has no depth tokens and cannot use it: leave it out"
            )
        check_pooling(loaded.config, pooling, path)
        if pooling is not None:
            loaded.config = copying.deepcopy(loaded.config)
            loaded.config.pooling = pooling
            loaded.config.validate()
        ours, theirs = (loaded.config.vocab_size, loaded.config.pad_token_id), (len(tokenizer), tokenizer.pad_token_id)
        if ours != theirs:
            raise ValueError(
                f"model and tokenizer of {path} do not belong together: the model has {ours[0]} ids and padding "
                f"{ours[1]}, the tokenizer {theirs[0]} and {theirs[1]}: save both of one training run into one folder"
            )
        if parity and not tokenizer.depth_tokens:
            raise ValueError(
                f"parity is that of scFoundation, whose models have depth tokens, and {path} has none: leave it out"
            )
        return cls(loaded, tokenizer, target_depth, parity, str(place) if adapter is not None else name)

    @property
    def has_own_scale(self) -> bool:
        """Whether distances between its embeddings are taken as they are: in anchored models.

        Their features are like principal components, whose scale separates signal from noise. Those of other models are
        standardised before distances are taken.
        """
        return getattr(self.model.config, "anchored", False)

    def untrained(self, seed: int) -> "CellModel":
        """Return a model with the same configuration and new random weights, drawn with the seed.

        Example:
            >>> CellModel.load("checkpoint").untrained(seed=0).tokenizer.num_genes
            19264
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = type(self.model)(copying.deepcopy(self.model.config))
        return CellModel(fresh.to(self.model.device).eval(), self.tokenizer, self.target_depth, self.parity)

    @property
    def needs_encoder(self) -> bool:
        """Whether cell embeddings depend on the encoder; that of an anchored model may add nothing to the bag of genes.

        Example:
            >>> CellModel.load("checkpoint").needs_encoder  # anchored, and not trained yet
            False
        """
        bag = getattr(self.model.base_model, "bag", None)
        return bag is None or bool(bag.from_encoder.weight.any())

    def without_encoder(self) -> "CellModel | None":
        """Return the bag of genes of an anchored model alone, to which the encoder adds nothing; None for other models.

        Example:
            >>> CellModel.load("checkpoint").without_encoder().tokenizer.num_genes
            19264
        """
        if not self.has_own_scale:
            return None
        alone = copying.deepcopy(self.model)
        base = alone.base_model
        forget_encoder(base)
        getattr(base, "encoder", base).layers = nn.ModuleList()  # they would be computed in vain; a TxFM is its encoder
        return CellModel(alone, self.tokenizer, self.target_depth, self.parity)

    def read(self, adata: Any, source: CellInput | None = None) -> "PanelCounts":
        """Find the counts of cells and match their genes.

        Args:
            adata: Cells x genes. Raw counts may also be a path, or anything else that the tokenizer reads.
            source: Where the values are; a `ModelInput` also says what they mean.

        Raises:
            ValueError: If no counts are found, too few genes are known, or values cannot be of the input type.

        Example:
            >>> CellModel.load("checkpoint").read(adata).n_cells
            5
        """
        source = source or CellInput()
        if not isinstance(source, ModelInput):
            source = ModelInput(layer=source.layer, gene_column=source.gene_column)
        input_type, total_key = source.input_type, source.total_key
        check_depth(input_type, self.target_depth)
        where: dict[str, Any] = {
            "layer": source.layer, "gene_names": source.gene_names, "gene_column": source.gene_column
        }  # fmt: skip
        if input_type != "counts" or total_key is not None or self.parity:  # not all tokenizers take them
            totals = totals_of(adata, total_key, input_type)
            where |= {"input_type": input_type, "totals": totals, "parity": self.parity}
        return self.tokenizer.read_counts(adata, **where)

    def depth_of(self, cells: "PanelCounts") -> float | str | None:
        """Return the target depth: the one given, or with parity the one of the scFoundation script."""
        if self.parity and self.target_depth is None and not cells.input_type.startswith("bulk"):
            return "t4"
        return self.target_depth

    def run(
        self,
        cells: "PanelCounts",
        forward: Callable[[dict[str, Any]], Any],
        running: Running | None,
        **options: Any,
    ) -> Any:
        """Return the rows of `forward(batch)` for every cell, in order; `options` are those of `run_cells`."""
        from .running import run_cells

        return run_cells(self.model, self.tokenizer, cells, forward, running, self.depth_of(cells), **options)

    def embed(self, cells: "PanelCounts", running: Running | None = None) -> np.ndarray:
        """Return cell embeddings `(cells, D)`.

        Example:
            >>> loaded = CellModel.load("checkpoint")
            >>> loaded.embed(loaded.read(adata)).shape
            (5, 64)
        """
        used = self if self.needs_encoder else self.without_encoder()
        assert used is not None  # only a bag of genes needs no encoder
        base = used.model.base_model
        return used.run(cells, lambda batch: base(**batch).pooler_output, running)

    def classify(self, cells: "PanelCounts", running: Running | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return class probabilities `(cells, C)` and embeddings `(cells, D)` from one run of a classifier.

        Example:
            >>> annotator = CellModel.load("annotator", task="classify")          # doctest: +SKIP
            >>> probabilities, _ = annotator.classify(annotator.read(adata))      # doctest: +SKIP
        """
        base, num_labels = self.model.base_model, self.model.config.num_labels

        def forward(batch: dict[str, Any]) -> Any:
            pooled_BD = base(**batch).pooler_output
            return torch.cat([self.model.classify(pooled_BD, **batch).float().softmax(-1), pooled_BD.float()], dim=1)

        both = self.run(cells, forward, running)
        return both[:, :num_labels], both[:, num_labels:]

    def decode(
        self,
        cells: "PanelCounts",
        gene_ids: np.ndarray | None = None,
        running: Running | None = None,
        **options: Any,
    ) -> Any:
        """Return embeddings of genes in the context of each cell `(cells, Q, E)`; all genes unless ids are given.

        `options` are those of `run_cells`.

        Raises:
            ValueError: If the model predicts values of genes but has no embeddings of them.

        Example:
            >>> loaded = CellModel.load("checkpoint", task="decode")
            >>> loaded.decode(loaded.read(adata), gene_ids=np.array([0, 7])).shape
            (5, 2, 64)
        """
        if "decode" not in families.abilities_of(self.model):
            raise ValueError(
                f"{type(self.model).__name__} gives no embeddings of genes in their cell: ask for expression"
            )
        base, ids = self.model.base_model, self.on_device(gene_ids)

        def forward(batch: dict[str, Any]) -> Any:
            states_BQE = base.contextual_gene_embeddings(**batch, gene_ids=ids)
            return states_BQE.masked_fill(is_empty(batch)[:, None, None], np.nan)

        return self.run(cells, forward, running, **options)

    def predict_expression(
        self,
        cells: "PanelCounts",
        gene_ids: np.ndarray | None = None,
        running: Running | None = None,
        with_embedding: bool = False,
        **options: Any,
    ) -> Any:
        """Return predicted `log1p` of counts per 10,000, `(cells, Q)`; of all genes unless ids are given.

        With `with_embedding`, each row begins with the cell embedding, `(cells, D + Q)`, from the same run of the
        encoder. `options` are those of `run_cells`.

        Example:
            >>> loaded = CellModel.load("checkpoint", task="reconstruct")
            >>> loaded.predict_expression(loaded.read(adata), gene_ids=np.array([0, 7])).shape
            (5, 2)
        """
        ids = self.on_device(gene_ids)

        def forward(batch: dict[str, Any]) -> Any:
            values_BQ, pooled_BD = self.model.predict_expression(**batch, gene_ids=ids)
            values_BQ = per_10k(values_BQ, self.tokenizer.target_sum).masked_fill(is_empty(batch)[:, None], np.nan)
            return torch.cat([pooled_BD, values_BQ], dim=1) if with_embedding else values_BQ

        return self.run(cells, forward, running, **options)

    def gene_table(self) -> np.ndarray:
        """Return the learned vector of each gene `(G, D)`, the same in every cell; row = gene id."""
        table = self.model.get_input_embeddings().weight[: self.tokenizer.num_genes]
        return table.detach().float().cpu().numpy()

    def on_device(self, gene_ids: np.ndarray | None) -> Any:
        """Return ids `(Q,)` as a tensor on the device of the model, None for None."""
        return None if gene_ids is None else torch.from_numpy(gene_ids).to(self.model.device)


def is_empty(batch: dict[str, Any]) -> Any:
    """Return which cells of a batch have no token, `(B,)`."""
    return ~batch["attention_mask"].bool().any(1)


def totals_of(adata: Any, total_key: str | None, input_type: str) -> np.ndarray | None:
    """Return the total count of each cell from a column of obs, None where none is named.

    Raises:
        ValueError: If the input type needs totals and no column is named, or the column is missing or holds no numbers.
    """
    if input_type == "log-total" and total_key is None:
        raise ValueError(
            f"input_type is 'log-total', and total_key names no column with the total count of each cell; obs has "
            f"{', '.join(map(str, adata.obs)) or 'none'}"
        )
    if total_key is None:
        return None
    if total_key not in adata.obs or adata.obs[total_key].dtype.kind not in "iuf":
        raise ValueError(
            f"total_key is {total_key!r}, and obs has the columns {', '.join(map(str, adata.obs)) or 'none'}: name "
            f"one that holds numbers, the total count of each cell"
        )
    return adata.obs[total_key].to_numpy()


def check_cells(adata: Any, source: ModelInput, target_depth: float | str | None) -> None:
    """Refuse cells for reasons that are known before a model is loaded.

    Args:
        adata: Cells.
        source: Where their values are, and what they mean.
        target_depth: Depth that the target token says.

    Raises:
        TypeError: If `adata` is no AnnData.
        ValueError: If totals are needed and no column of obs has them, or bulk samples are given a target depth.
    """
    if not hasattr(adata, "obsm"):
        raise TypeError(
            f"adata is a {type(adata).__name__}: read it first, e.g. anndata.read_h5ad(path), or use `xtrimogene embed`"
        )
    totals_of(adata, source.total_key, source.input_type)
    check_depth(source.input_type, target_depth)


def check_depth(input_type: str, target_depth: float | str | None) -> None:
    """Refuse a target depth for bulk samples.

    Raises:
        ValueError: If one is given.
    """
    if input_type.startswith("bulk") and target_depth is not None:
        raise ValueError(
            f"target_depth is {target_depth!r}, and bulk samples have none: T is S, as in scFoundation; leave it out"
        )


def check_ability(path: str, task: Task, architectures: Sequence[str], able: frozenset[str]) -> None:
    """Refuse a checkpoint that cannot do a task.

    Raises:
        ValueError: If it cannot.
    """
    if task in able:
        return
    kind = f"{path} is a {', '.join(architectures)}"
    if task == "classify":
        raise ValueError(
            f"{kind} and knows no cell types: fine-tune it first with `xtrimogene finetune`, or annotate by labelled "
            f"cells (--reference and --label-key; in Python reference= and label_key=)"
        )
    if task == "reconstruct":
        raise ValueError(
            f"{kind}, and genes are predicted by pre-trained models with their decoder: give the folder of a "
            f"pre-trained checkpoint, or a model loaded with AutoModelForPreTraining"
        )
    raise ValueError(f"{kind} and embeds no cells: give the folder of a pre-trained or fine-tuned checkpoint")


def check_pooling(config: Any, pooling: str | None, path: str) -> None:
    """Refuse a pooling that models of a family, or anchored ones, do not have.

    Args:
        config: Configuration of a checkpoint.
        pooling: How cells are to be pooled; None for the checkpoint's own way.
        path: The checkpoint, for the message.

    Raises:
        ValueError: If they have not.
    """
    if pooling in (None, getattr(config, "pooling", None)):
        return
    if pooling not in (own := families.poolings(config)):
        raise ValueError(
            f"pooling is {pooling!r}, and {path} is of the family {families.family_of(config).about.name}, which has "
            f"only the pooling {' or '.join(map(repr, own)) or 'of its models'}: leave pooling out"
        )
    if getattr(config, "anchored", False):
        raise ValueError(
            f"pooling is {pooling!r}, and {path} is anchored: its embedding adds what the encoder finds to a bag of "
            f"genes and is not pooled otherwise; leave pooling out"
        )


def from_folder(saved: Saved, running: Running, task: Task, parity: bool, adapter: AdapterFolder | None = None) -> Any:
    """Return the model of a checkpoint for a task, or of an adapter with its base, on a device.

    Raises:
        ValueError: If cells are to be embedded and it has no encoder.
    """
    place = pick_device(running.device)
    number = torch.float32 if parity else pick_dtype(running.dtype)
    changes = {"sentinel_values": True, "favor_stabilizer": "batch"} if parity else {}
    if adapter is not None:
        loaded = adapter.load(task, dtype=number, **changes).to(place).eval()
    else:
        member, revision = families.AUTO_CLASSES[task], saved.revision
        loaded = member.from_pretrained(saved.path, revision=revision, dtype=number, **changes).to(place)
    if task == "embed" and loaded.base_model is None:
        raise ValueError(f"{saved.path} was trained on features of cells and has no encoder: give another checkpoint")
    return loaded.base_model if task == "embed" else loaded


def shared(model: Any, task: Task, parity: bool) -> Any:
    """Return a copy of a loaded model that shares its weights; changes of the copy leave the given model as it is.

    Raises:
        ValueError: For parity.
    """
    if parity:
        raise ValueError(f"parity needs the folder of a checkpoint, and a loaded {type(model).__name__} was given")
    return copying.copy(model.base_model if task == "embed" else model)
