"""Families of models: their configuration, tokenizer, models and sizes, and the abilities of their checkpoints.

    "architectures" in config.json  ->  abilities     {"embed", "reconstruct", ...}
    configuration                   ->  family_of     its tokenizer, models and sizes
    name of a size                  ->  preset        the family that has it

`register` adds a family, also one from outside of this package. The Auto classes of transformers then know it, and with
them embedding, training and evaluation. `training/objectives.py` holds its training objectives.

A model has each of its abilities by one method. `batch` is a batch of the tokenizer, `base` is `model.base_model`.
Letters: B cells, D width of a cell embedding, Q genes asked for (all unless given), E width of a gene embedding,
C classes.

| ability     | loaded by                          | method                                                            |
|-------------|------------------------------------|-------------------------------------------------------------------|
| embed       | AutoModel                          | `base(**batch).pooler_output` `(B, D)`                            |
| decode      | AutoModelForPreTraining            | `base.contextual_gene_embeddings(**batch, gene_ids=)` `(B, Q, E)` |
| reconstruct | AutoModelForPreTraining            | `model.predict_expression(**batch, gene_ids=)` `(B, Q)`, `(B, D)` |
| gene_rows   | AutoModelForPreTraining            | `model.decoder_gene_embeddings()` `(G, D)`, or None               |
| classify    | AutoModelForSequenceClassification | `model.classify(pooled, **batch)` `(B, C)`                        |
"""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .modeling_xtrimogene.configuration_perturbation import XTrimoGenePerturbationConfig
from .modeling_xtrimogene.configuration_synergy import XTrimoGeneSynergyConfig
from .modeling_xtrimogene.configuration_txfm import TXFM_PRESETS, TxFMConfig
from .modeling_xtrimogene.configuration_xtrimogene import PRESETS, XTrimoGeneConfig
from .tokenization.expression_xtrimogene import ExpressionTokenizer
from .tokenization.tokenization_txfm import TxFMTokenizer
from .tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer

Ability = Literal["embed", "decode", "reconstruct", "gene_rows", "classify", "perturb", "synergise"]
AUTO_CLASSES: dict[str, Any] = {
    "embed": AutoModel,
    "decode": AutoModelForPreTraining,
    "reconstruct": AutoModelForPreTraining,
    "gene_rows": AutoModelForPreTraining,
    "classify": AutoModelForSequenceClassification,
}


class LazyClass:
    """Stand for a class until its first use, because importing transformers' models takes long.

    Args:
        module: Module of the class, relative to this package.
        name: Name of the class.
    """

    def __init__(self, module: str, name: str):
        self.module = module
        self.__name__ = name

    def load(self) -> type:
        """Import and return the class; the Auto classes then hold it instead of this object."""
        loaded = getattr(importlib.import_module(self.module, __package__), self.__name__)
        for family in FAMILIES.values():
            for member in family.members:
                if member.model_class is self and member.auto_class is not None:
                    member.auto_class.register(family.config, loaded, exist_ok=True)
        return loaded

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.load(), attribute)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Build the model."""
        return self.load()(*args, **kwargs)


@dataclass(frozen=True)
class Member:
    """A model class of a family.

    Attributes:
        model_class: The class, or a `LazyClass` for it.
        abilities: What its checkpoints can do.
        auto_class: The Auto class that returns this class for the family's configuration; None if there is none.
    """

    model_class: Any
    abilities: frozenset[Ability]
    auto_class: Any = None


@dataclass(frozen=True)
class About:
    """What a model card says of a family.

    Attributes:
        name: Name of the family.
        a_model: A model of it, as a sentence begins.
        description: A few sentences on what its models are.
        uses: What its pre-trained models are for, in a line.
        pretraining: A sentence on what pre-training masks, and on its loss.
        paper: The paper, as Markdown; empty if there is none.
        citation: BibTeX of the paper; empty if there is none.

    Example:
        >>> TXFM.about.a_model
        'A TxFM'
    """

    name: str
    a_model: str
    description: str = ""
    uses: str = "embedding of human cells, fine-tuning for cell types"
    pretraining: str = ""
    paper: str = ""
    citation: str = ""


@dataclass(frozen=True)
class Family:
    """Models of one configuration.

    Attributes:
        config: Class of the configuration.
        tokenizer: Class of the tokenizer, an expression tokenizer.
        members: The model classes.
        presets: Name of a size -> fields of the configuration.
        learning_rate: Largest learning rate of a pre-training that suits its new models.
        learning_rates: Name of a size -> another rate for it.
        finetuning_rate: Largest learning rate of a fine-tuning; by the kind of the model unless given.
        told: What a card says of it; no more than the name of the configuration unless given.
    """

    config: type[PreTrainedConfig]
    tokenizer: Any
    members: tuple[Member, ...]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    learning_rate: float = 1e-4
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    finetuning_rate: float | None = None
    told: About | None = None

    @property
    def about(self) -> About:
        """What a card says of the family."""
        name = self.config.__name__.removesuffix("Config")
        return self.told or About(name, f"A {name}")

    def configure(self, size: str, **changes: Any) -> Any:
        """Return the configuration of a size, with the given changes.

        >>> family_of_preset("tiny").configure("tiny", num_genes=100).hidden_size
        64
        """
        return self.config(**{**self.presets[size], **changes})


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Add a family; one of the same `model_type` is replaced.

    Raises:
        ValueError: If its configuration has no `model_type` or that of a model of transformers, its tokenizer reads no
            expression, a member claims an ability that there is not, or a size is called like one of another family.
    """
    model_type = family.config.model_type
    if not model_type:
        raise ValueError(f"{family.config.__name__} has no model_type: set one, by which its checkpoints are known")
    if model_type in CONFIG_MAPPING_NAMES:
        raise ValueError(
            f"{model_type!r} is the model_type of a model of transformers: give {family.config.__name__} another"
        )
    if not (isinstance(family.tokenizer, type) and issubclass(family.tokenizer, ExpressionTokenizer)):
        raise ValueError(
            f"the tokenizer of {model_type} is {family.tokenizer!r}: give a subclass of ExpressionTokenizer"
        )
    for member in family.members:
        if unknown := sorted(member.abilities - set(get_args(Ability))):
            raise ValueError(
                f"{named(member)} claims the ability {unknown[0]!r}; there are {', '.join(get_args(Ability))}"
            )
    of_others = {size for name, other in FAMILIES.items() if name != model_type for size in other.presets}
    if taken := sorted(of_others.intersection(family.presets)):
        raise ValueError(f"a size of {model_type} is called {taken[0]!r}, as one of another family: give it another")
    FAMILIES[model_type] = family
    AutoConfig.register(model_type, family.config, exist_ok=True)
    AutoTokenizer.register(family.config, family.tokenizer, exist_ok=True)
    for member in family.members:
        if member.auto_class is not None:
            # `auto_class.register` would import the class.
            member.auto_class._model_mapping.register(family.config, member.model_class, exist_ok=True)


def family_of(config: Any) -> Family:
    """Return the family of a configuration.

    Raises:
        ValueError: If none is registered for it.

    Example:
        >>> family_of(XTrimoGeneConfig.preset("tiny")).tokenizer.__name__
        'XTrimoGeneTokenizer'
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"no family has the model_type {config.model_type!r}, only {', '.join(FAMILIES)}: register it with "
            f"xtrimogene.families.register"
        )
    return FAMILIES[config.model_type]


def family_of_preset(size: str) -> Family:
    """Return the family that has a size.

    Raises:
        ValueError: If none has it.

    Example:
        >>> family_of_preset("100M").config.model_type
        'xtrimogene'
    """
    for family in FAMILIES.values():
        if size in family.presets:
            return family
    raise ValueError(f"no preset {size!r}; there are {', '.join(sizes())}")


def poolings(config: Any) -> tuple[str, ...]:
    """Return the ways in which models of a configuration's class pool a cell; none if it has no field `pooling`.

    >>> poolings(TxFMConfig()), len(poolings(XTrimoGeneConfig()))
    (('cls',), 6)
    """
    declared = type(config).__dataclass_fields__.get("pooling")
    return () if declared is None else get_args(declared.type)


def sizes() -> list[str]:
    """Return the names of all sizes.

    >>> sizes()[:5]
    ['micro', 'tiny', '3M', '10M', '100M']
    """
    return [size for family in FAMILIES.values() for size in family.presets]


def abilities(architectures: Iterable[str]) -> frozenset[Ability]:
    """Return what a checkpoint of these classes can do, from `architectures` in its `config.json`.

    A class that no family has, such as one that a user derived, can embed: AutoModel loads its encoder.

    >>> sorted(abilities(["XTrimoGeneForPreTraining"]))
    ['decode', 'embed', 'gene_rows', 'reconstruct']
    """
    names = set(architectures)
    known = [each.abilities for family in FAMILIES.values() for each in family.members if named(each) in names]
    return frozenset[Ability]().union(*known) if known else frozenset[Ability](["embed"])


def abilities_of(model: Any) -> frozenset[Ability]:
    """Return what a model can do; a model of a derived class can do what its base classes can."""
    return abilities(each.__name__ for each in type(model).__mro__)


def named(member: Member) -> str:
    """Return the name of a member's class."""
    return member.model_class.__name__


def model_class(config: Any, ability: Ability) -> Any:
    """Return the class of a new model with an ability: the one that the ability's Auto class returns.

    Raises:
        ValueError: If no class of the family has the ability.

    Example:
        >>> model_class(XTrimoGeneConfig.preset("tiny"), "reconstruct").__name__
        'XTrimoGeneForPreTraining'
    """
    family = family_of(config)
    for member in family.members:
        if ability in member.abilities and member.auto_class is AUTO_CLASSES.get(ability, member.auto_class):
            return member.model_class.load() if isinstance(member.model_class, LazyClass) else member.model_class
    names = ", ".join(map(named, family.members))
    raise ValueError(f"no model of {config.model_type} has the ability {ability!r}; there are {names}")


_ABOUT_XTRIMOGENE = About(
    name="xTrimoGene",
    a_model="An xTrimoGene",
    description="""\
xTrimoGene is a masked autoencoder of single-cell gene expression. Its encoder attends only to the genes that a cell
expresses; its decoder, a Performer, covers all genes of the panel. It takes raw counts and gives embeddings of cells
and of genes, and values for masked genes.""",
    uses="""\
embedding of human cells, fine-tuning for cell types, perturbation and drug response, recovery of masked values""",
    pretraining="""\
A share of the expressed genes and a share of the zero genes are masked; the loss is the squared error of their
values, `log1p` of counts per 10,000.""",
    paper="[arXiv 2311.15156](https://arxiv.org/abs/2311.15156)",
    citation="""\
@inproceedings{gong2023xtrimogene,
  title     = {xTrimoGene: An Efficient and Scalable Representation Learner for Single-Cell {RNA}-Seq Data},
  author    = {Gong, Jing and Hao, Minsheng and Cheng, Xingyi and Zeng, Xin and Liu, Chiming and Ma, Jianzhu and
               Zhang, Xuegong and Wang, Taifeng and Song, Le},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  note      = {arXiv:2311.15156}
}""",
)
_ABOUT_TXFM = About(
    name="TxFM",
    a_model="A TxFM",
    description="""\
TxFM is a masked autoencoder of counts. Its encoder sees some of the genes that were measured in a cell, zeros among
them, and a CLS token; its decoder reconstructs all measured genes from the CLS token alone, which is the cell's
embedding. It takes raw counts and gives embeddings of cells and of genes, and expected values of genes.""",
    uses="embedding of human cells, fine-tuning for cell types, recovery of masked values",
    pretraining="""\
In each epoch the encoder sees other measured genes of a cell; the loss is that of counts, over all genes that were
measured, seen or not. Values are `log1p` of counts per 100,000.""",
    paper="[TxFM](https://openreview.net/forum?id=NqZqClqtTK) (arXiv 2605.31562)",
    citation="""\
@inproceedings{kenyondean2026txfm,
  title     = {Effective Biological Representation Learning by Masking Gene Expression},
  author    = {Kenyon-Dean and Bendidi and Selega and Sorokin and Bertinetto and Errington and Kraus and Donnella},
  booktitle = {ICLR Workshop on Foundation Models for Science},
  year      = {2026},
  note      = {arXiv:2605.31562}
}""",
)
_MODELS = ".modeling_xtrimogene.modeling_xtrimogene"
XTRIMOGENE = Family(
    XTrimoGeneConfig,
    XTrimoGeneTokenizer,
    (
        Member(LazyClass(_MODELS, "XTrimoGeneModel"), frozenset({"embed", "decode"}), AutoModel),
        Member(
            LazyClass(_MODELS, "XTrimoGeneForPreTraining"),
            frozenset({"embed", "decode", "reconstruct", "gene_rows"}),
            AutoModelForPreTraining,
        ),
        Member(
            LazyClass(_MODELS, "XTrimoGeneForSequenceClassification"),
            frozenset({"embed", "classify"}),
            AutoModelForSequenceClassification,
        ),
    ),
    PRESETS,
    learning_rates={"micro": 2e-3, "tiny": 2e-3},
    told=_ABOUT_XTRIMOGENE,
)
_TXFM = ".modeling_xtrimogene.modeling_txfm"
TXFM = Family(
    TxFMConfig,
    TxFMTokenizer,
    (
        Member(LazyClass(_TXFM, "TxFMModel"), frozenset({"embed"}), AutoModel),
        Member(
            LazyClass(_TXFM, "TxFMForPreTraining"),
            frozenset({"embed", "reconstruct", "gene_rows"}),
            AutoModelForPreTraining,
        ),
        Member(
            LazyClass(_TXFM, "TxFMForSequenceClassification"),
            frozenset({"embed", "classify"}),
            AutoModelForSequenceClassification,
        ),
    ),
    TXFM_PRESETS,
    learning_rate=1e-3,  # the paper's, of all sizes
    learning_rates={"txfm-micro": 3e-3, "txfm-tiny": 3e-3},
    finetuning_rate=1e-4,  # larger steps unlearn the regression that an annotator begins with
    told=_ABOUT_TXFM,
)
# Heads with a configuration of their own.
PERTURBATION = Family(
    XTrimoGenePerturbationConfig,
    XTrimoGeneTokenizer,
    (
        Member(
            LazyClass(".modeling_xtrimogene.modeling_perturbation", "XTrimoGeneForPerturbationPrediction"),
            frozenset({"perturb"}),
            AutoModel,
        ),
    ),
    told=_ABOUT_XTRIMOGENE,
)
SYNERGY = Family(
    XTrimoGeneSynergyConfig,
    XTrimoGeneTokenizer,
    (
        Member(
            LazyClass(".modeling_xtrimogene.modeling_synergy", "XTrimoGeneForDrugSynergy"),
            frozenset({"embed", "synergise"}),
            AutoModel,
        ),
    ),
    told=_ABOUT_XTRIMOGENE,
)
DEFAULT = XTRIMOGENE  # used if neither a checkpoint nor a size determines the family
for _family in (XTRIMOGENE, TXFM, PERTURBATION, SYNERGY):
    register(_family)
