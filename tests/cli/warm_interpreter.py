"""Run commands of the program in children of one warm interpreter, each with a limit of time and memory.

A line of JSON on stdin, `{"arguments": [...], "folder": ...}`, is one run; a line on stdout is its end:

    {"code": exit code or null, "signal": number or null, "stdout": ..., "stderr": ...}

Importing everything takes seconds, and a child of an interpreter that has imported it begins at once. A child that
dies, hangs or eats memory takes nothing with it. `test_fuzz.py` starts this file as a program, with a checkpoint and a
file of cells, on which it first runs commands itself.
"""

import gc
import importlib
import json
import os
import re
import resource
import sys
import traceback
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CPU_SECONDS = 10
MEMORY = 3 << 30  # bytes, beyond what the warm interpreter has mapped


def warm_up(checkpoint: str, cells: str) -> None:
    """Import what commands import, and build what they cache, by a first run of some."""
    import anndata  # noqa: F401
    import pandas  # noqa: F401
    import scanpy  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import zarr  # noqa: F401
    from typer.testing import CliRunner

    import xtrimogene.cli
    import xtrimogene.eval.report.pictures
    import xtrimogene.modeling_xtrimogene.modeling_xtrimogene
    import xtrimogene.recipes.pretrain
    import xtrimogene.tl
    import xtrimogene.training.anchoring
    import xtrimogene.training.data.convert
    from xtrimogene.tokenization import expression_xtrimogene, genes_xtrimogene

    xtrimogene.training.anchoring.PASSES = 1
    # Pictures are half of the time of a training, and say nothing of how a file is read.
    xtrimogene.eval.report.pictures._save = lambda figure, path: path and Path(path).touch()
    # Every tokenizer of the test has the packaged table of names, and one of two panels: they are read once.
    names = genes_xtrimogene.GeneTable.load(xtrimogene.XTrimoGeneTokenizer.default().gene_table_file)
    genes_xtrimogene.GeneTable.load = lambda file: names
    of_panels = cache(lambda genes: genes_xtrimogene.GeneMatcher(genes, names))
    expression_xtrimogene.GeneMatcher = lambda genes, table: of_panels(tuple(genes))
    re._MAXCACHE = 1 << 16  # loading a model compiles a thousand expressions
    with TemporaryDirectory() as folder:
        for arguments in (["inspect", cells], ["embed", cells, "-m", checkpoint, "-o", f"{folder}/out.h5ad"]):
            assert CliRunner().invoke(xtrimogene.cli.app, arguments).exit_code == 0
    gc.collect()
    gc.freeze()  # a child need not look for garbage in what was imported


def test_fuzz() -> Any:
    """Return the test file beside this one, which has the judge `plainly_whole`."""
    sys.path.insert(0, str(Path(__file__).parent))
    return importlib.import_module("test_fuzz")


def limit() -> None:
    """Limit the time and memory of this process."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    # At the first limit comes SIGXCPU, which tells that it is one of time; at the second SIGKILL.
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(arguments: list[str]) -> int:
    """Run the program, and return its exit code."""
    from xtrimogene.cli import app

    try:
        if arguments[0] == "plainly whole":
            return int(not test_fuzz().plainly_whole(Path(arguments[1])))
        app(arguments)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def child(arguments: list[str], folder: Path) -> None:
    """Run the program in this process with its output in files, and end the process."""
    limit()
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    code = run(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Run what is asked for, one run after the other, until stdin ends."""
    warm_up(*sys.argv[1:])
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        folder = Path(asked["folder"])
        number = os.fork()
        if number == 0:
            child(asked["arguments"], folder)
        status = os.waitpid(number, 0)[1]
        said = {name: (folder / name).read_text(errors="replace") for name in ("stdout", "stderr")}
        ended = {
            "code": os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        }
        print(json.dumps(ended | said), file=answers, flush=True)


if __name__ == "__main__":
    serve()
