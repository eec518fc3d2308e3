# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Tell the columns that count RNA of genes from others: antibodies, guides, spike-ins, controls, tallies, QC values.

    var["feature_types"]   Gene Expression | Antibody Capture | ...       decides first
    names                  TP53 | ERCC-00002 | NegPrb1 | __no_feature     decide where there is no type

Columns that are left out count neither for a gene nor for the total of a cell; one line counts and names them. The name
of a gene of the panel or of the gene table never leaves its column out. Transgenes (EGFP, tdTomato, Cas9, WPRE) and
transcripts of viruses stay: they are RNA that the cell made, and part of its total.

Sources: Cell Ranger, Xenium Ranger and CosMx (feature types, control probes), htseq-count and STAR (tallies), scanpy,
scater and Seurat (QC values), BD Rhapsody, TotalSeq and CellPlex (tags), the CELLxGENE schema (`feature_biotype`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .genes_xtrimogene import ENSEMBL
from .sparse_xtrimogene import CellsError

# Columns of var that hold the type of each feature, without case and punctuation.
TYPE_COLUMNS = {
    "featuretypes", "featuretype", "featurebiotype", "featuremodality", "modality", "modalities", "librarytype",
}  # fmt: skip
# Values for gene expression. If a column has one of them, all its other values are other measurements.
EXPRESSION = {
    "geneexpression", "gex", "rna", "mrna", "scrna", "snrna", "scrnaseq", "snrnaseq", "rnaseq", "transcriptome",
}  # fmt: skip
# Values that are other measurements in any case.
OTHER_TYPE = re.compile(
    r"antibod|^adt|^hto|hashtag|^(?:cell)?(?:surface)?prot(?:eins?)?$|citeseq|crispr|guide|grna|^peaks?$|atac|chromatin"
    r"|multiplexing|^cmo|^lmo|cellplex|antigen|dextramer|^custom|codeword|control|blank|spikein|^ercc|^tags?$"
)
# Kinds of genes in Ensembl, GENCODE and GFF files (protein_coding, lncRNA, pseudogene). They are no types of
# measurements.
KIND_OF_GENE = re.compile(r"gene|rna|proteincoding|transcript|antisense|sense(?:intronic|overlapping)|^tec$|ribozyme")

KINDS = {
    "spike-ins": r"""
        ERCC[-_. ]?\d{5}(?:[-_.]\w+)? | SIRV[-_]?\w+ | R\d_\d{1,3}(?:_\d)?
        | (?:Lambda|phi[-_ ]?X)(?:[-_ ]?(?:174|phage|DNA|genome|control))*
        | (?:RNA[-_ ])?spike[-_ ]?(?:ins?(?:[-_ ]?[\w-]+)?|\d+)
    """,
    "control probes": r"""
        neg(?:ative)?[-_. ]?(?:prb|pr(?:obe)?s?|ctrl|control).* | negative[-_. ]?\d+ | (?:neg|pos)_[A-H](?:\(.*\))?
        | blank(?:[-_. ]\S+|\d*) | antisense_\S+ | (?:unassigned|deprecated|blank)[-_ ]?codeword\S* | AFFX\S+
        | intergenic[-_ ]?region\S* | (?:genomic|system)[-_ ]?control\S* | false[-_ ]?code\S*
        | (?:control|ctrl)[-_ ]?probe\S*
    """,
    "tallies of reads": r"""
        X?[_.]{0,2}(?:no_feature|ambiguous|too_low_aqual|not_aligned|alignment_not_unique) | __[a-z]\w* | \*
        | N_(?:unmapped|multimapping|noFeature|ambiguous) | unassigned(?:_\w+)? | (?:un|multi)?mapp(?:ed|ing)(?:_reads)?
    """,
    "QC values": r"""
        (?:log(?:1p|10|2)?[_.])?(?:total|n|num|nb|number_of)[_.](?:count|gene|umi|read|feature|cell|molecule)s?(?:[_.]\w+)?
        | log(?:1p|10|2)?[_.](?:counts?|genes?|umis?|total) | (?:umi|gene|read|total|feature)s?[_.]?counts?
        | n(?:Count|Feature)_\w+ | n(?:UMI|Gene|Count|Read|Feature)s? | (?:log10)?GenesPerUMI
        | (?:pct|perc|percent|percentage|frac|fraction|prop|proportion)[_. ]\S+ | (?:pct|percent)(?:mt|mito|ribo|rb)\w*
        | (?:mito(?:chondrial)?|ribo(?:somal)?|mt|rb)[_.]?(?:percent(?:age)?|pct|frac|fraction|ratio|prop|counts?)
        | subsets_\w+_(?:sum|detected|percent) | sum | detected | total | (?:library|lib)[_.]?size | size[_.]?factors?
        | (?:doublet|scrublet|scdblfinder)[_.]?(?:scores?|class)? | predicted_doublets? | (?:S|G2M)[_.]Score
        | (?:X_)?(?:umap|t-?sne|pca?)_\d{1,2} | leiden | louvain | (?:seurat_)?clusters? | batch
    """,
    "guides": r"""
        (?:sg|g)RNA[-_:.]?\S+ | (?:non|safe)[-_ ]?targeting\S*
    """,
    "antibodies and tags": r"""
        (?:ADT|CITE|prot|protein|antibody)[-_.:]\S+ | Ab[_:]\S+ | HTO(?:[-_.]\w+|\d*|[A-J]) | hash[-_ ]?tag.* | CMO\d{3}
        | sample[-_ ]?tag\S+ | IgG\d[a-c]?[-_. ](?:control|ctrl|iso).*
    """,
}  # fmt: skip
# Searched only in names with punctuation, which are few, because patterns that may start anywhere are slow.
KINDS_WITHIN = {
    "spike-ins": r"\w+_ERCC[-_. ]?\d{5}",
    "antibodies and tags": r"""
        \S+[-_.](?:ADT|HTO|PROT|TotalSeq\S*|Total[ABCD]) | \S+\|[ps]t?AbO | \S+[-_][ACGT]{10,} | .*hash[-_ ]?tag.*
        | (?:\w+-)?anti[-_ ](?:human|mouse|rat|CD|HLA|Ig).* | .*isotype.*
    """,
}
TAGS = "antibodies and tags"
NO_GENE, NO_GENE_WITHIN = (
    re.compile("|".join(f"(?P<k{list(KINDS).index(kind)}>{kinds[kind]})" for kind in kinds), re.IGNORECASE | re.VERBOSE)
    for kinds in (KINDS, KINDS_WITHIN)
)
SHOWN = 3  # names or types shown in a line


class Columns(NamedTuple):
    """Which columns are read, and a note on the others.

    Attributes:
        is_read: Whether each column is read, bool `(columns,)`.
        note: Names the columns that are left out; empty if there are none.
    """

    is_read: np.ndarray
    note: str


def gene_columns(
    names: Mapping[str, Sequence[str]],
    types: Sequence[tuple[str, np.ndarray]] = (),
    is_gene: Callable[[str], bool] | None = None,
    where: str = "var",
) -> Columns:
    """Return which columns count RNA.

    Args:
        names: Lists of names of the columns, by where they were found.
        types: Types of the columns, from `types_of`.
        is_gene: Whether a name is a gene's. Columns with such a name stay.
        where: Name of the table of columns, for messages.

    Raises:
        ValueError: If no column would be left; the message gives the reason.

    Example:
        >>> columns = gene_columns({"var_names": ["TP53", "ERCC-00002", "CD3D"]})
        >>> columns.is_read
        array([ True, False,  True])
    """
    num_columns = len(next(iter(names.values())))
    reasons = np.full(num_columns, "", dtype=object)
    notes = []
    for name, each in types:
        is_other, unknown = other_types(each)
        is_new = is_other & (reasons == "")
        reasons[is_new] = each[is_new]
        if unknown:
            notes.append(f'{where}["{name}"] names no gene expression ({shortened(unknown)}) and is not followed')
    if (reasons != "").all():
        raise CellsError(
            f'{where}["{types[0][0]}"] says that all {num_columns:,} columns are {shortened(sorted(set(reasons)))} '
            f"and none is Gene Expression: give the RNA of these cells, or take that column away if it is wrong"
        )
    for listed in names.values():
        for place, kind in kinds_of(listed, is_gene):
            others = [] if kind == TAGS else [found[place] for found in names.values()]
            if not reasons[place] and not any(ENSEMBL.match(name) or (is_gene and is_gene(name)) for name in others):
                reasons[place] = kind
    is_read = reasons == ""
    if not is_read.any():
        raise CellsError(
            f"all {num_columns:,} columns are {shortened(sorted(set(reasons)))} by their names, and none is a gene: "
            f"give the columns of RNA"
        )
    if not is_read.all():
        first = next(iter(names.values()))
        parts = []
        for reason in dict.fromkeys(reasons[~is_read]):
            places = np.flatnonzero(reasons == reason)
            parts.append(f"{len(places):,} {reason} ({shortened([first[place] for place in places[: SHOWN + 1]])})")
        notes.insert(0, f"left out {(~is_read).sum():,} of {num_columns:,} columns: {', '.join(parts)}")
    return Columns(is_read, "; ".join(notes))


def types_of(var: Any, names: Any = None) -> list[tuple[str, np.ndarray]]:
    """Return the columns of `var` that hold types of features: name and text, which is empty where it is missing.

    Args:
        var: The table.
        names: Names of features, in whose order the text is returned; it is empty for a name that `var` has not, or
            has more than once. The order of `var` unless given.
    """
    found = []
    for name in var.columns:
        if plain(name) in TYPE_COLUMNS:
            column = var[name].astype(object)
            if names is not None and not column.index.equals(names):
                column = column[~column.index.duplicated(keep=False)].reindex(names)
            found.append((str(name), column.where(column.notna(), "").astype(str).str.strip().to_numpy(object)))
    return found


def other_types(types: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return which columns are other measurements than RNA, and the types that are unknown.

    If a type is known to be gene expression, every other type is another measurement. If none is, as where `var` holds
    kinds of genes (`protein_coding`, `gene`), only types known to be no RNA are. A column without a type is read.
    """
    values, places = np.unique(types.astype(str), return_inverse=True)
    is_missing = values == ""
    is_expression = np.array([plain(value) in EXPRESSION for value in values])
    is_other = np.array([OTHER_TYPE.search(plain(value)) is not None for value in values])
    if is_expression.any():
        is_other = ~is_expression & ~is_missing
    is_unknown = ~(is_expression | is_other | is_missing)
    is_kind_of_gene = np.array([KIND_OF_GENE.search(plain(value)) is not None for value in values])
    unknown = values[is_unknown & ~is_kind_of_gene].tolist()
    return is_other[places], unknown


def kinds_of(names: Sequence[str], is_gene: Callable[[str], bool] | None) -> list[tuple[int, str]]:
    """Return the place and the kind of each name that is known to be no gene's."""
    kinds = list(KINDS)
    found = []
    for place, name in enumerate(names):
        if name.startswith("ENSG"):  # most names of most files, which need no search
            continue
        name = name.strip()
        match = NO_GENE.fullmatch(name) or (None if name.isalnum() else NO_GENE_WITHIN.fullmatch(name))
        if match is not None and not (is_gene and is_gene(name)):
            found.append((place, kinds[int(str(match.lastgroup)[1:])]))
    return found


def plain(text: Any) -> str:
    """Return text in lower case, without blanks and punctuation."""
    return re.sub(r"[^a-z0-9]", "", str(text).lower())


def shortened(names: Sequence[str]) -> str:
    """Return the first names in a line, with `...` if there are more."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
