"""Build the two gene files that the package carries: `genes.txt` and `gene_table.tsv.gz`.

    python tokenization/build_gene_table.py PANEL.tsv HGNC.tsv.gz GENCODE.csv.gz CHECK.tsv --out tokenization

* `genes.txt`: the 19,264 symbols of the xTrimoGene panel, one a line, in the order of the embedding table.
* `gene_table.tsv.gz`: one row for each human gene, on the panel or not: symbol, Ensembl ids, previous symbols and
  aliases, lists joined by `|`. It serves any panel. Genes off the panel are in it so that their symbols are not
  taken for an alias of a gene on the panel.

Sources: panel order from the scFoundation repository (Apache-2.0, biomap-research/scFoundation at d09626a);
HGNC complete set of May 2020 (CC0); GENCODE 44 of 2023 (open access). GENCODE is newer than HGNC: where both name a
gene differently, GENCODE's name is the symbol and HGNC's name a previous symbol.
"""

import argparse
import csv
import gzip
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Phenotypes are loci without a product; they never name a column of an expression matrix.
DROPPED_LOCUS_GROUPS = {"phenotype"}
# GENCODE gives a gene on an alternative haplotype the same name as on the chromosome. A name with more ids than
# this is a family (Y_RNA, U3, SNORA70), not a gene.
MAX_IDS_OF_A_GENE = 3


@dataclass
class Gene:
    """A row of the table."""

    symbol: str
    ensembl: list[str] = field(default_factory=list)
    previous: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a tab-separated file with a header, gzipped or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def split(names: str) -> list[str]:
    """Split a list at `|`, and drop names that are never column names: text with blanks, and numbers."""
    return [name for name in names.split("|") if name and " " not in name and not name.replace(".", "").isdigit()]


def read_hgnc(path: Path) -> list[Gene]:
    """Return the approved genes of HGNC."""
    return [
        Gene(
            row["symbol"],
            split(row["ensembl_gene_id"]),
            split(row["prev_symbol"]),
            split(row["alias_symbol"]),
        )
        for row in read_rows(path)
        if row["status"] == "Approved" and row["locus_group"] not in DROPPED_LOCUS_GROUPS
    ]


def add_gencode(genes: list[Gene], path: Path) -> None:
    """Add GENCODE's ids and its newer names, in place."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        names = {ensembl_id: name for ensembl_id, name in csv.reader(file) if name != ensembl_id}
    n_ids = Counter(names.values())
    by_symbol = {gene.symbol: gene for gene in genes}
    by_ensembl: dict[str, Gene] = {}
    for gene in genes:
        for ensembl_id in gene.ensembl:
            # HGNC gives three ids to two genes each: the gene with GENCODE's name keeps the id.
            if ensembl_id not in by_ensembl or names.get(ensembl_id) == gene.symbol:
                by_ensembl[ensembl_id] = gene
    for gene in genes:
        gene.ensembl = [ensembl_id for ensembl_id in gene.ensembl if by_ensembl[ensembl_id] is gene]

    for ensembl_id, name in names.items():
        # A name of several ids, or one that is another gene's symbol, is no evidence of a new name.
        if ensembl_id in by_ensembl and n_ids[name] == 1 and name not in by_symbol:
            gene = by_symbol[name] = by_ensembl[ensembl_id]
            gene.previous.append(gene.symbol)
            gene.symbol = name

    for ensembl_id, name in names.items():
        if ensembl_id in by_ensembl or n_ids[name] > MAX_IDS_OF_A_GENE:
            continue
        if name not in by_symbol:
            by_symbol[name] = Gene(name)
            genes.append(by_symbol[name])
        by_symbol[name].ensembl.append(ensembl_id)


def drop_shadowed(genes: list[Gene]) -> None:
    """Drop previous symbols that are a symbol, and aliases that are a symbol or previous symbol, in place."""
    symbols = {gene.symbol for gene in genes}
    for gene in genes:
        gene.previous = sorted(set(gene.previous) - symbols)
    previous = {name for gene in genes for name in gene.previous}
    for gene in genes:
        gene.aliases = sorted(set(gene.aliases) - symbols - previous)


def write_table(genes: list[Gene], path: Path) -> None:
    """Write the table, byte for byte the same for the same genes."""
    lines = ["symbol\tensembl\tprevious\talias"]
    for gene in sorted(genes, key=lambda gene: gene.symbol):
        lists = (sorted(gene.ensembl), gene.previous, gene.aliases)
        lines.append("\t".join([gene.symbol, *("|".join(names) for names in lists)]))
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), compresslevel=9, mtime=0))


def check_panel(genes: list[Gene], path: Path) -> None:
    """Stop if the table gives the name and the hand-annotated Ensembl id of a panel gene to two genes."""
    by_ensembl = {ensembl_id: gene for gene in genes for ensembl_id in gene.ensembl}
    annotated = [row for row in read_rows(path) if row["ensembl_gene_id"]]
    wrong = []
    for row in annotated:
        gene = by_ensembl.get(row["ensembl_gene_id"])
        if gene is None or row["gene_name"] not in {gene.symbol, *gene.previous, *gene.aliases}:
            wrong.append(row["gene_name"])
    if wrong:
        raise SystemExit(f"{len(wrong)} panel genes are not found under their Ensembl id: {wrong[:20]}")


def main() -> None:
    """Build both files from the command line's four sources."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("panel", type=Path, help="gene_name and index, in panel order")
    parser.add_argument("hgnc", type=Path, help="HGNC complete set, gzipped")
    parser.add_argument("gencode", type=Path, help="Ensembl id and name, gzipped, no header")
    parser.add_argument("check", type=Path, help="Ensembl ids of the panel, to check the table against")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    args = parser.parse_args()

    panel = [row["gene_name"] for row in read_rows(args.panel)]
    genes = read_hgnc(args.hgnc)
    add_gencode(genes, args.gencode)
    drop_shadowed(genes)
    check_panel(genes, args.check)
    (args.out / "genes.txt").write_text("\n".join(panel) + "\n", encoding="utf-8")
    write_table(genes, args.out / "gene_table.tsv.gz")
    print(f"{len(panel):,} panel genes, {len(genes):,} genes in the table")


if __name__ == "__main__":
    main()
