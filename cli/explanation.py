"""`explain`: the genes by which a model tells cell types."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..inference.options import Explaining, Running
from ..released import chosen
from ..tokenization.reading import CellInput, read_cells
from .command import command
from .inference import running_over
from .options import AnyModel, Cells, Writing, check_cells
from .output import Screen, new_text
from .process import prepare_process

if TYPE_CHECKING:
    from pandas import DataFrame

SHOWN = 8  # genes of a type on the screen


@command
def explain(
    file: Cells,
    output: Annotated[Path, typer.Option("--output", "-o", help="The table to write, .csv or .tsv.")],
    how: Explaining,
    cells: CellInput,
    running: Running,
    writing: Writing,
    model: AnyModel = None,
) -> None:
    """Tell which genes decide each cell type that a fine-tuned model names.

    Example: `xtrimogene explain blood.h5ad -o genes.csv`

    That is of an annotator of blood, which comes with the package. Of one of your own:
    `xtrimogene explain my.h5ad --model annotator -o genes.csv`

    The cells need no labels. The table has a row for each type and gene: how much the gene adds to the score of the
    type, by which path, its mean value in these cells and in the others, and of how many cells. These are the genes
    that the model goes by; they need not be what makes the cells what they are.
    """
    screen = Screen(writing)
    check_cells(file, where=cells)
    new_text(output, writing.force, "--output", (".csv", ".tsv"))
    model = chosen(model, "classify", screen.say)

    from ..inference.explanation import explain as explained
    from ..inference.saved import Saved

    adata = read_cells(file)
    prepare_process()
    most = Saved.of(model).config().num_labels * how.cells_per_type
    total = adata.n_obs + min(adata.n_obs, most)  # all cells are named first, then some of them explained
    with running_over(total, "Explaining", screen, running) as (running, _):
        table = explained(adata, model, cells, how, running)
    table.round(6).to_csv(output, sep="\t" if output.suffix == ".tsv" else ",", index=False)
    screen.show(first_genes(table), f"Written: {output}, {len(table):,} rows")
    screen.result({"output": output, "rows": len(table), "genes": genes_of(table)})


def genes_of(table: "DataFrame") -> dict[str, list[str]]:
    """Return type -> its genes, the first first."""
    return {str(name): part["gene"].tolist() for name, part in table.groupby("type", sort=False)}


def first_genes(table: "DataFrame") -> Table:
    """Return a table of the first genes of each type."""
    numbers = dict(zip(table["type"], table["cells"], strict=True))
    shown = Table(title="Genes that decide each type, the first first", title_justify="left")
    shown.add_column("type")
    shown.add_column("cells", justify="right")
    shown.add_column("genes")
    for name, genes in genes_of(table).items():
        shown.add_row(name, f"{numbers[name]:,}", ", ".join(genes[:SHOWN]))
    return shown
