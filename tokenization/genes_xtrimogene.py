"""Match the gene names of a data set to the rows of a panel.

    names of the columns            panel
    ENSG00000141510.18  ->  TP53    0      A1BG
    GRCh38_MARCH1  ->  MARCHF1      1      A1CF     match(names).rows: the panel row of every column,
    1-Mar          ->  MARCHF1      ...             -1 where the column is no gene of the panel
    Actb           ->  none         19263  ZZZ3

Each name is matched on its own, so one list may mix symbols and Ensembl ids. A name that is written as on the panel
is that gene. Any other name is looked up in the gene table: first among approved symbols, then Ensembl ids, then
previous symbols, then aliases. If several genes have the name at the same level, the one on the panel is taken; if
several of them are on the panel, the name is not matched.

Source of the table: HGNC (May 2020) and GENCODE 44, see `build_gene_table.py`.
"""

import gzip
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from .sparse_xtrimogene import CellsError

GENOME_PREFIX = re.compile(r"^(?:GRCh\d\d|hg\d\d)_+")
OTHER_GENOME = re.compile(r"^(?:GRCm\d\d|mm\d+|rn\d+)_+")
# An id alone, or with a symbol or tag on either side: `RP11-309M23.1_ENSG00000237531`, `ENSG00000182378.14_PAR_Y`.
# The digits tell ids from symbols such as ENSA. Versions are removed from ids only: AC000068.10 is a whole symbol.
ENSEMBL = re.compile(r"^(?:(.+)_)?(ENS[A-Z]{0,4}G\d{11})(?:\.\d+)?(?:_(.+))?$")
OPEN_READING_FRAME = re.compile(r"^(C(?:\d+|X|Y))ORF(\d.*)$")
# Excel turns MARCH1 into 1-Mar, Mar-1 or, once saved as a full date, 2024-03-01.
EXCEL_DATE = re.compile(
    r"^(?:(\d{1,2})-(Mar|Sep|Dec)|(Mar|Sep|Dec)-(\d{1,2})|\d{4}-(03|09|12)-(\d\d)(?: 00:00:00)?)$", re.I
)
# 1-Mar was MARCH1 or MARC1; the first that names a gene is taken.
EXCEL_MONTHS = {"mar": ("MARCH", "MARC"), "sep": ("SEPT", "SEP"), "dec": ("DEC",)}
EXCEL_MONTHS |= {"03": EXCEL_MONTHS["mar"], "09": EXCEL_MONTHS["sep"], "12": EXCEL_MONTHS["dec"]}
# The suffix that scanpy (TBCE-1) and R (TBCE.1) append to a repeated name.
UNIQUE_SUFFIX = re.compile(r"^(.+)[-.]\d{1,2}$")
BLANK = {"", "none", "nan", "<na>"}

# If most names look like this, the list is no list of human genes. The first that fits is reported.
SUSPECTS = (
    (re.compile(r"^[ACGT]{12,}(-\d+)?$"), "cell barcodes", "transpose the matrix to cells x genes (adata.T)"),
    (re.compile(r"^(ENSMUSG\d+|(GRCm\d\d|mm\d+)_)"), "mouse genes", "map them to human orthologs first"),
    (re.compile(r"^(ENSRNOG\d+|rn\d+_)"), "rat genes", "map them to human orthologs first"),
    (re.compile(r"^ENS[A-Z]{3,4}G\d+"), "genes of another species", "map them to human orthologs first"),
    (re.compile(r"^ENS[A-Z]{0,4}T\d+"), "transcripts", "sum transcripts to genes first"),
    (re.compile(r"^ENS[A-Z]{0,4}P\d+"), "proteins", "name the genes that code for them"),
    (re.compile(r"^[A-Z][a-z0-9]*[a-z][\w.-]*$"), "mouse or rat symbols", "map to human orthologs first"),
    (re.compile(r"(_at|^ILMN_\d+)$"), "microarray probes", "map probes to genes first"),
)  # fmt: skip


@dataclass(frozen=True)
class GeneMatch:
    """Match between the names of a data set's columns and a panel.

    Attributes:
        rows: Panel row of each name, -1 where it is no gene of the panel. Shape `(n_names,)`, int32.
        n_names: Names given.
        n_panel: Genes of the panel.
        n_matched: Genes of the panel that at least one name reaches.
        n_by_ensembl: Names that reach the panel as an Ensembl id.
        n_by_alias: Names that reach the panel as another symbol than the panel's.
        n_other_species: Names that carry the prefix of another genome, such as `mm10_`.
        source: Where the names were found, such as `var["gene_ids"]`.

    Example:
        >>> match = xtrimogene.XTrimoGeneTokenizer.default().matcher.match(["CD3D", "ENSG00000156738", "NoGene1"])
        >>> match.n_matched, match.n_by_ensembl, match.n_unmatched
        (2, 1, 1)
    """

    rows: np.ndarray
    n_names: int
    n_panel: int
    n_matched: int
    n_by_ensembl: int
    n_by_alias: int
    n_other_species: int
    source: str = "gene_names"

    @property
    def measured(self) -> np.ndarray:
        """Whether a name reaches each gene of the panel, bool `(n_panel,)`; the others were not measured."""
        return np.isin(np.arange(self.n_panel), self.rows)

    @property
    def n_absent(self) -> int:
        """Number of genes of the panel that no name reaches; their counts are zero."""
        return self.n_panel - self.n_matched

    @property
    def n_unmatched(self) -> int:
        """Number of names that are no gene of the panel; their counts are not used."""
        return int((self.rows < 0).sum())

    @property
    def n_summed(self) -> int:
        """Number of names whose gene an earlier name reached; their counts are added to that gene."""
        return self.n_names - self.n_unmatched - self.n_matched

    def summary(self) -> str:
        """Return one line for people."""
        parts = [f"matched {self.n_matched:,}/{self.n_panel:,} genes ({self.n_matched / self.n_panel:.1%})"]
        counted = {
            "by Ensembl id": self.n_by_ensembl,
            "by alias": self.n_by_alias,
            "absent (zero-filled)": self.n_absent,
            "duplicates summed": self.n_summed,
            "columns not on the panel": self.n_unmatched,
            "of them another species": self.n_other_species,
        }
        parts += [f"{count:,} {what}" for what, count in counted.items() if count]
        return " · ".join(parts).replace("%)", " %)")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields without `rows`, for the provenance of a result."""
        counts = {key: value for key, value in asdict(replace(self, rows=np.empty(0))).items() if key != "rows"}
        return counts | {
            "n_absent": self.n_absent,
            "n_unmatched": self.n_unmatched,
            "n_summed": self.n_summed,
        }


class GeneTable:
    """Names of human genes, strongest claim first: symbol, Ensembl id, previous symbol, alias.

    Args:
        rows: For each gene, its four lists of names in that order.

    Example:
        >>> table = GeneTable([(["MARCHF1"], ["ENSG00000145416"], ["MARCH1"], ["RNF171"])])
        >>> matcher = GeneMatcher(["MARCHF1"], table)
        >>> matcher.match(["RNF171"]).rows
        array([0], dtype=int32)
    """

    def __init__(self, rows: Iterable[Sequence[Sequence[str]]]):
        self._claims: tuple[dict[str, list[int]], ...] = ({}, {}, {}, {})
        for gene, kinds in enumerate(rows):
            for claims, names in zip(self._claims, kinds, strict=True):
                for name in names:
                    claims.setdefault(name, []).append(gene)

    @classmethod
    def load(cls, file: str | os.PathLike | BinaryIO) -> "GeneTable":
        """Read a table that `build_gene_table.py` wrote, from its path or from a file that is open."""
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            next(lines)
            return cls([names.split("|") if names else [] for names in line.rstrip("\n").split("\t")] for line in lines)

    @classmethod
    def empty(cls) -> "GeneTable":
        """Return a table without genes: names then match a panel only as they are written there."""
        return cls([])

    def find(self, name: str) -> tuple[int, list[int]] | None:
        """Return the kind of a name (0 = symbol, ..., 3 = alias) and the genes that have it; None if none has."""
        for kind, claims in enumerate(self._claims):
            if name in claims:
                return kind, claims[name]
        return None


class GeneMatcher:
    """Find the panel row of a gene by any of its names.

    Args:
        panel: Names of the panel's genes, symbols or Ensembl ids, in the order of its rows.
        table: Names of genes.

    Raises:
        ValueError: If the panel is empty or repeats a name.

    Example:
        >>> matcher = GeneMatcher(["TP53", "CD3D"], GeneTable.empty())  # without a table, by exact name
        >>> matcher.match(["CD3D", "TP53", "p53"]).rows
        array([ 1,  0, -1], dtype=int32)
    """

    def __init__(self, panel: Sequence[str], table: GeneTable):
        self._panel = list(panel)
        self._table = table
        self._row_of_name = {name: row for row, name in enumerate(self._panel)}
        if not self._panel or len(self._row_of_name) < len(self._panel):
            raise ValueError(
                f"panel has {len(self._panel)} names, {len(self._row_of_name)} of them different: "
                f"it needs at least one, each once"
            )
        claims = []
        for row, name in enumerate(self._panel):
            found = next(filter(None, map(table.find, spellings(name))), None)
            if found is not None and len(found[1]) == 1:
                claims.append((found[0], row, found[1][0]))
        self._row_of_gene: dict[int, int] = {}
        # If the panel has two names of one gene, its other names are matched to the row of its symbol.
        for _, row, gene in sorted(claims):
            self._row_of_gene.setdefault(gene, row)

    def match(self, names: Sequence[str], min_share: float = 0.2) -> GeneMatch:
        """Return the panel row of each name.

        Args:
            names: Names of the columns of a data set.
            min_share: Least share of the names, or of the panel if that is smaller, that has to match;
                0 accepts any.

        Raises:
            ValueError: If there are no names, some are blank, or too few match; the message gives the likely
                cause.

        Example:
            >>> tokenizer = xtrimogene.XTrimoGeneTokenizer.default()
            >>> match = tokenizer.matcher.match(["ENSG00000141510.18", "1-Mar", "Actb"])
            >>> [tokenizer.genes[row] if row >= 0 else None for row in match.rows]
            ['TP53', 'MARCHF1', None]
        """
        names = [str(name).strip() for name in names]
        n_blank = sum(name.lower() in BLANK for name in names)
        if not names:
            raise CellsError("there are 0 gene names: the data has no columns, or gene_names is an empty list")
        if n_blank:
            raise CellsError(
                f"{n_blank:,} of {len(names):,} gene names are empty, 'None' or 'nan': an earlier mapping "
                f"of names has failed; repeat it, or drop these columns"
            )
        present = set(names)
        found = [self._resolve(name, present) for name in names]
        rows = np.array([row for row, _ in found], dtype=np.int32)
        as_ensembl = [row >= 0 and ENSEMBL.match(spelling) is not None for row, spelling in found]
        as_alias = [row >= 0 and self._panel[row] != spelling for row, spelling in found]
        result = GeneMatch(
            rows=rows,
            n_names=len(names),
            n_panel=len(self._panel),
            n_matched=len(np.unique(rows[rows >= 0])),
            n_by_ensembl=sum(as_ensembl),
            n_by_alias=sum(alias and not ensembl for alias, ensembl in zip(as_alias, as_ensembl, strict=True)),
            n_other_species=sum(OTHER_GENOME.match(name) is not None for name in names),
        )
        if result.n_matched < min_share * min(result.n_names, result.n_panel):
            raise CellsError(
                f"{len(names):,} gene names reach only {result.n_matched:,} of {result.n_panel:,} panel "
                f"genes (min_share={min_share}): {diagnose(names)}"
            )
        return result

    def best_match(
        self, candidates: Mapping[str, Sequence[str]], min_share: float = 0.2, row_names: Sequence[str] = ()
    ) -> GeneMatch:
        """Return the match of the list of names that reaches most genes of the panel; of equals, the first.

        Args:
            candidates: Lists of names of the columns, by where they were found.
            min_share: Least share of the names, or of the panel if that is smaller, that has to match.
            row_names: Names of the rows. If they match instead of the columns, the matrix is genes x cells.

        Raises:
            ValueError: If no list matches; the message gives the cause for each, or says that the rows match.

        Example:
            >>> matcher = xtrimogene.XTrimoGeneTokenizer.default().matcher
            >>> matcher.best_match({"var_names": ["a", "b"], 'var["symbol"]': ["CD3D", "NKG7"]}).source
            'var["symbol"]'
        """
        matches, errors = [], []
        for source, names in candidates.items():
            try:
                matches.append(replace(self.match(names, min_share), source=source))
            except ValueError as error:
                errors.append(f"{source}: {error}")
        if not matches:
            try:
                rows = self.match(row_names, min_share)
            except ValueError:
                raise CellsError("\n".join(errors)) from None
            raise CellsError(
                f"{rows.n_names:,} row names reach {rows.n_matched:,} of {rows.n_panel:,} panel genes, and the column "
                f"names too few: this is genes x cells; transpose it to cells x genes (adata.T, or frame.T)"
            )
        return max(matches, key=lambda match: match.n_matched)

    def _resolve(self, name: str, present: set[str]) -> tuple[int, str]:
        """Return the panel row of a name, or -1, and the spelling that was found."""
        for spelling in spellings(name):
            row = self._find(spelling)
            if row is not None:
                return row, spelling
        # The ending was appended to a repeated name if no gene has the name with it, and another column has it without.
        repeated = UNIQUE_SUFFIX.match(name)
        if repeated and repeated[1] in present:
            return self._resolve(repeated[1], set())
        return -1, name

    def knows(self, name: str) -> bool:
        """Return whether a gene, on the panel or off it, has this name.

        >>> GeneMatcher(["TP53", "CD3D"], GeneTable.empty()).knows("TP53")
        True
        """
        return any(self._find(spelling) is not None for spelling in spellings(name.strip()))

    def _find(self, spelling: str) -> int | None:
        """Return the panel row, -1 for a gene outside the panel, or None if no gene has this name."""
        if spelling in self._row_of_name:
            return self._row_of_name[spelling]
        found = self._table.find(spelling)
        if found is None:
            return None
        rows = {self._row_of_gene[gene] for gene in found[1] if gene in self._row_of_gene}
        return rows.pop() if len(rows) == 1 else -1


def spellings(name: str) -> Iterator[str]:
    """Yield the spellings of a name to look up, from the name as written to the most changed."""
    name = GENOME_PREFIX.sub("", name)
    yield name
    if ensembl := ENSEMBL.match(name):
        before, ensembl_id, after = ensembl.groups()
        yield from (part for part in (ensembl_id, before, after) if part)
    # C1ORF43 is C1orf43. No other lower case is tried, because mouse symbols would then match human ones.
    if OPEN_READING_FRAME.match(name):
        yield OPEN_READING_FRAME.sub(r"\1orf\2", name)
    if date := EXCEL_DATE.match(name):
        day = int(date[1] or date[4] or date[6])
        for stem in EXCEL_MONTHS[(date[2] or date[3] or date[5]).lower()]:
            yield f"{stem}{day}"


def diagnose(names: Sequence[str]) -> str:
    """Return what names that match no panel probably are, and what to do."""
    if sum(name.isdigit() for name in names) > len(names) / 2:
        # Numbers that count up are an index that replaced the names; Entrez ids do not count up.
        if list(names[:3]) in (["0", "1", "2"][: len(names)], ["1", "2", "3"][: len(names)]):
            return "they only count the columns: the index of names was lost; pass gene_names= or gene_column="
        return "they are numbers, perhaps Entrez ids: pass symbols or Ensembl ids by gene_names= or gene_column="
    examples = ", ".join(names[:5])
    for pattern, what, remedy in SUSPECTS:
        share = sum(pattern.search(name) is not None for name in names) / len(names)
        if share > 0.5:
            return f"{share:.0%} look like {what} ({examples}); {remedy}"
    return f"they are not the names of human genes ({examples}); pass symbols or Ensembl ids by gene_names="
