"""Run commands of the program in children of one warm interpreter, each with a limit of time and memory.

A line of JSON on stdin, `{"arguments": [...], "folder": ...}`, is one run; a line on stdout is its end:

    {"code": exit code or null, "signal": number or null, "stdout": ..., "stderr": ...}

Importing everything takes seconds, and a child of an interpreter that has imported it begins at once. A child that
dies, hangs or eats memory takes nothing with it. `test_fuzz.py` starts this file as a program.
"""

import importlib
import json
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

CPU_SECONDS = 60
MEMORY = 3 << 30  # bytes, beyond what the warm interpreter has mapped


def warm_up() -> None:
    """Import what commands import, and build what they cache."""
    import anndata  # noqa: F401
    import pandas  # noqa: F401
    import scanpy  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import zarr  # noqa: F401
    from typer.testing import CliRunner

    import xtrimogene.cli
    import xtrimogene.modeling_xtrimogene.modeling_xtrimogene
    import xtrimogene.recipes.pretrain
    import xtrimogene.tl
    import xtrimogene.training.anchoring
    import xtrimogene.training.data.convert
    from xtrimogene.tokenization.genes_xtrimogene import GeneTable

    xtrimogene.training.anchoring.PASSES = 1
    names = GeneTable.load(xtrimogene.XTrimoGeneTokenizer.default().gene_table_file)
    GeneTable.load = lambda path: names  # every tokenizer of the test has the packaged table, whose reading takes long
    assert CliRunner().invoke(xtrimogene.cli.app, ["inspect", "nothing"]).exit_code != 0


def test_fuzz() -> Any:
    """Return the test file beside this one, which has the judge `plainly_whole`."""
    sys.path.insert(0, str(Path(__file__).parent))
    return importlib.import_module("test_fuzz")


def limit() -> None:
    """Limit the time and memory of this process."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
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
    warm_up()
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
