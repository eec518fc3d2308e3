"""Damaged files of cells, made by chance: each command gives the right result, or one line that names the file.

    whole file  ->  a damage that hypothesis draws  ->  six commands, each in a process with limits  ->  judged

A command may end well on a damaged file only if its result is that of the whole file, if a line says what was left out,
or if nothing betrays the damage: a plain reader finds a file that is whole, with other values (`plainly_whole`). Some
damages of HDF5 make its library search without end, in h5py alone too: they are counted apart.

`pytest -m slow -rP tests/cli/test_fuzz.py` also tells how many files were tried and how the commands ended: 304 files
in 1,824 runs.
"""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import zarr
from scipy import sparse

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from xtrimogene.tokenization.counts_xtrimogene import find_counts

pytestmark = pytest.mark.slow
EXAMPLES = 38  # damaged files of each kind
COMMANDS = ("inspect", "embed", "annotate", "enhance", "convert", "pretrain")


# -- whole files ------------------------------------------------------------------------------------------------------


def write_h5ad(cells, path):
    cells.write_h5ad(path, compression="gzip")


def write_by_columns(cells, path):
    cells = cells.copy()
    cells.X = cells.X.tocsc()
    cells.write_h5ad(path)


def write_dense(cells, path):
    cells = cells.copy()
    cells.X = cells.X.toarray()
    cells.write_h5ad(path, compression="gzip")


def write_layers(cells, path):
    """Write logarithms in X, and counts in a layer and in raw."""
    cells = cells.copy()
    cells.layers["counts"], cells.raw = cells.X.copy(), cells
    cells.X = cells.X.multiply(1e4 / cells.X.sum(1)).log1p().tocsr().astype(np.float32)
    cells.uns["log1p"] = {"base": None}
    cells.write_h5ad(path, compression="gzip")


def write_zarr(cells, path):
    cells.write_zarr(path)


def write_10x(cells, path):
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group.create_dataset(name, data=getattr(cells.X, name), compression="gzip")
        group["shape"] = np.array(cells.shape[::-1])
        group["barcodes"] = cells.obs_names.to_numpy().astype("S")
        constant = {"feature_type": ["Gene Expression"] * cells.n_vars, "genome": ["GRCh38"] * cells.n_vars}
        for name, values in ({"id": cells.var["gene_ids"], "name": cells.var_names} | constant).items():
            group[f"features/{name}"] = np.array(list(values)).astype("S")


def write_mtx(cells, path):
    path.mkdir()
    scipy.io.mmwrite(path / "plain.mtx", cells.X.T.tocoo())
    genes = zip(cells.var["gene_ids"], cells.var_names, strict=True)
    texts = {
        "matrix.mtx": (path / "plain.mtx").read_text(),
        "barcodes.tsv": "".join(f"{name}\n" for name in cells.obs_names),
        "features.tsv": "".join(f"{number}\t{name}\tGene Expression\n" for number, name in genes),
    }
    (path / "plain.mtx").unlink()
    for name, text in texts.items():
        (path / f"{name}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def write_csv(cells, path):
    pd.DataFrame(cells.X.toarray().astype(int), cells.obs_names, cells.var_names).to_csv(path)


KINDS = {
    "cells.h5ad": write_h5ad,
    "by_columns.h5ad": write_by_columns,
    "dense.h5ad": write_dense,
    "layers.h5ad": write_layers,
    "folder.zarr": write_zarr,
    "tenx.h5": write_10x,
    "tenx_mtx": write_mtx,
    "table.csv.gz": write_csv,
}


# -- damages ----------------------------------------------------------------------------------------------------------

PLACES = st.floats(0, 1, exclude_max=True)
TYPES = st.sampled_from(["text", "bool", "scalar", "matrix", "complex", "bytes", "group"])
WORDS = st.sampled_from(["-3", "0", "nan", "inf", "999999999", "x", "", "1.5", "1e300", "é"])
NUMBERS = st.sampled_from([np.nan, np.inf, -np.inf, -1.0, -7.0, 0.5, 3e38, 1e30, 2.0**53])
WHOLE_NUMBERS = st.sampled_from([-1, -(2**31), 2**31 - 1, 10**6, 10**9, 10**12, 0])
FILE_DAMAGES = st.one_of(
    st.tuples(st.just("cut"), PLACES),
    st.tuples(st.just("flip"), st.lists(PLACES, min_size=1, max_size=6), st.integers(1, 255)),
    st.tuples(st.just("blank"), PLACES, st.integers(16, 600)),
)
ARRAY_DAMAGES = st.one_of(
    st.tuples(st.just("remove"), PLACES),
    st.tuples(st.just("retype"), PLACES, TYPES),
    st.tuples(st.just("shorten"), PLACES, st.integers(1, 5)),
    st.tuples(st.just("lengthen"), PLACES, st.integers(1, 5)),
    st.tuples(st.just("indices"), PLACES, WHOLE_NUMBERS),
    st.tuples(st.just("indptr"), PLACES, WHOLE_NUMBERS),
    st.tuples(st.just("data"), PLACES, NUMBERS),
    st.tuples(st.just("attribute"), PLACES, st.sampled_from(["remove", "word", "number", "longer"])),
)
LINE_DAMAGES = st.one_of(
    st.tuples(st.just("remove file"), PLACES),
    st.tuples(st.just("remove line"), PLACES, PLACES),
    st.tuples(st.just("repeat line"), PLACES, PLACES),
    st.tuples(st.just("word"), PLACES, PLACES, WORDS),
)


def damages_of(kind):
    """Return what hypothesis draws damages of a kind of file from."""
    if kind == "tenx_mtx":
        return st.one_of(FILE_DAMAGES, LINE_DAMAGES, LINE_DAMAGES)
    if kind.endswith(".csv.gz"):
        return st.one_of(FILE_DAMAGES, LINE_DAMAGES.filter(lambda damage: damage[0] != "remove file"))
    return st.one_of(FILE_DAMAGES, ARRAY_DAMAGES, ARRAY_DAMAGES)


def at(things, place):
    """Return the thing at a place, 0 for the first and almost 1 for the last."""
    return things[int(place * len(things))]


def damage(path, what, *how):
    """Damage a file or folder; return whether it was changed."""
    file = path
    if path.is_dir() and (what in ("cut", "flip", "blank") or path.suffix != ".zarr"):
        files = sorted(each for each in path.rglob("*") if each.is_file())
        file = at(files, np.ravel(how[0])[0])
    if what in ("cut", "flip", "blank"):
        return change_bytes(file, what, *how)
    if what == "remove file":
        file.unlink()
        return True
    if what in ("remove line", "repeat line", "word"):
        return change_text(file, what, *how[1:])
    opened = zarr.open_group(path, mode="r+") if path.suffix == ".zarr" else h5py.File(path, "r+")
    with suppress(AttributeError) if path.suffix == ".zarr" else opened:
        return change_arrays(opened, what, *how)


def change_bytes(file, what, place, amount=0):
    before = file.read_bytes()
    after = bytearray(before)
    if what == "cut":
        after = after[: int(place * len(after))]
    elif what == "flip":
        for each in place:
            after[int(each * len(after))] ^= amount
    else:
        start = int(place * len(after))
        after[start : start + amount] = bytes(len(after[start : start + amount]))
    file.write_bytes(after)
    return bytes(after) != before


def change_text(file, what, place, word=""):
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    number = int(place * len(lines))
    before = list(lines)
    if what == "remove line":
        del lines[number]
    elif what == "repeat line":
        lines.insert(number, lines[number])
    else:
        separator = "," if "," in lines[number] else "\t" if "\t" in lines[number] else " "
        words = lines[number].split(separator)
        words[int(place * 997) % len(words)] = word
        lines[number] = separator.join(words)
    file.write_bytes(gzip.compress("\n".join([*lines, ""]).encode(), mtime=0))
    return lines != before


def arrays_of(group, under=""):
    """Return the paths of all arrays."""
    found = []
    for name in sorted(group):
        path = f"{under}/{name}".strip("/")
        found += arrays_of(group[name], path) if hasattr(group[name], "keys") else [path]
    return found


def change_arrays(file, what, place, how=None):
    paths = arrays_of(file)
    if what in ("indices", "indptr", "data"):
        paths = [path for path in paths if path.rsplit("/", 1)[-1] == what] or [path for path in paths if path == "X"]
        array = file[at(paths, place)]
        spot = int(place * 7919) % array.shape[0]
        with np.errstate(all="ignore"):
            if what == "data" and array.dtype.kind not in "f":
                replace(file, array.name.strip("/"), array[...].astype(np.float64))
                array = file[array.name.strip("/")]
            value = np.asarray(how).astype(array.dtype)
            spot = (spot, 3) if array.ndim == 2 else spot
            changed = not np.array_equal(array[spot], value, equal_nan=array.dtype.kind == "f")
            array[spot] = value
        return bool(changed)
    path = at(paths, place)
    if what == "remove":
        del file[path]
        return True
    array = file[path]
    if what == "attribute":
        group = file[path.rsplit("/", 1)[0]] if "/" in path else file
        owner = array if len(dict(array.attrs)) and place * 10 % 1 < 0.3 else group
        names = sorted(dict(owner.attrs))
        if not names:
            return False
        name = at(names, place * 31 % 1)
        if how == "remove":
            del owner.attrs[name]
        else:
            owner.attrs[name] = {"word": "other", "number": 7, "longer": [10**6, 10**6, 5]}[how]
        return True
    values = array[...]
    if isinstance(values, h5py.Empty):  # None in uns is stored so
        return False
    if what in ("shorten", "lengthen"):
        if not values.ndim or values.shape[0] < how:
            return False
        replace(file, path, values[:-how] if what == "shorten" else np.concatenate([values, values[:how]]))
        return True
    if how == "group":
        del file[path]
        file.create_group(path)
        return True
    is_text = values.dtype.kind in "OSUT"
    made = {
        "text": lambda: np.arange(values.size).astype("S8"),
        "bytes": lambda: np.full(values.shape, b"\xff\xfe"),
        "bool": lambda: np.ones(values.shape, bool) if is_text else values.astype(bool),
        "scalar": lambda: np.asarray(3.0),
        "matrix": lambda: np.ones((3, 2)),
        "complex": lambda: np.ones(values.shape, np.complex64),
    }[how]()
    replace(file, path, made)
    return True


def replace(file, path, values):
    """Put other values into an array, with its attributes."""
    attributes = dict(file[path].attrs)
    del file[path]
    if isinstance(file, h5py.File):
        file[path] = values
    else:
        file.create_array(path, data=np.asarray(values))
    for name, value in attributes.items():
        file[path].attrs[name] = value


# -- judging ----------------------------------------------------------------------------------------------------------


def plainly_whole(path):
    """Return whether the readers of anndata, scanpy, scipy and pandas find a whole file of counts, in this process."""
    if path.suffix in (".h5ad", ".zarr"):
        adata = anndata.read_h5ad(path) if path.suffix == ".h5ad" else anndata.read_zarr(path)
        matrices = [adata.X, *adata.layers.values(), *([adata.raw.X] if adata.raw is not None else [])]
    elif path.suffix == ".h5":
        import scanpy

        matrices = [scanpy.read_10x_h5(path).X]
    elif path.is_dir():
        tables = [pd.read_csv(path / f"{name}.tsv.gz", sep="\t", header=None) for name in ("features", "barcodes")]
        matrices = [scipy.io.mmread(path / "matrix.mtx.gz").tocsr()]
        assert matrices[0].shape == tuple(map(len, tables))
    else:
        with gzip.open(path, "rt") as file:
            assert len({line.count(",") for line in file}) == 1
        matrices = [pd.read_csv(path, index_col=0).to_numpy()]
    for matrix in matrices:
        if matrix is None:
            continue
        assert matrix.ndim == 2
        assert min(matrix.shape)
        if sparse.issparse(matrix):
            matrix.check_format(full_check=True)
            matrix = matrix.data
        assert matrix.dtype.kind in "iuf"
        assert np.isfinite(matrix).all()
        assert (matrix >= 0).all()
        assert (matrix < 1e9).all()
    return True


class Program:
    """The program in a warm interpreter; `run` gives how a command ended, and what it gave."""

    def __init__(self, folder, checkpoint, reference):
        self.folder, self.checkpoint, self.reference = folder, checkpoint, reference
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("warm_interpreter.py"), checkpoint, reference],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def end(self):
        self.process.stdin.close()
        self.process.wait()

    def ask(self, *arguments):
        asked = {"arguments": list(map(str, arguments)), "folder": str(self.folder)}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def is_plainly_whole(self, path):
        """Return whether `plainly_whole` says so, in a process that may die of the file."""
        return self.ask("plainly whole", path)["code"] == 0

    def loops_without_us(self, path):
        """Return whether a plain reader runs until it is ended, too."""
        return self.ask("plainly whole", path)["signal"] == signal.SIGXCPU

    def run(self, command, path):
        """Run a command on a file, and return its end and its result, None if it failed."""
        output = self.folder / {"convert": "corpus", "pretrain": "model"}.get(command, "out.h5ad")
        shutil.rmtree(output, ignore_errors=True)
        output.unlink(missing_ok=True)
        of_model = ["--model", self.checkpoint, "--device", "cpu", "-o", output]
        options = {
            "inspect": ["--json"],
            "embed": of_model,
            "annotate": [*of_model, "--reference", self.reference, "--label-key", "cell_type", "--n-neighbors", 3],
            "enhance": of_model,
            "convert": ["--model", self.checkpoint, "-o", output, "--min-genes", 0],
            "pretrain": ["--checkpoint", self.checkpoint, "--device", "cpu", "-o", output, "--max-steps", 1],
        }[command]
        ended = self.ask(command, path, *options)
        try:
            return ended, result_of(command, output, ended) if ended["code"] == 0 else None
        except Exception as error:  # an output that is damaged gives errors of any kind
            return ended | {"unreadable": str(error)}, None


def result_of(command, output, ended):
    """Return what a command that ended well gave, as arrays."""
    if command == "inspect":
        found = json.loads(ended["stdout"])
        of_slots = ("file", "next", "obs", "slots", "slot", "state", "counts")  # another slot may give the same values
        return {name: np.array(str(found[name])) for name in found if name not in of_slots}
    if command == "convert":
        table = pd.read_parquet(output / "data").drop(columns="source", errors="ignore")
        return {name: np.array(table[name].map(str)) for name in table}
    if command == "pretrain":
        return {"weights": np.frombuffer((output / "model.safetensors").read_bytes(), np.uint8)}
    adata = anndata.read_h5ad(output)
    if command == "annotate":
        return {"label": np.array(adata.obs["xtrimogene_label"].astype(str))}
    return {"embedding": adata.obsm["X_enhanced" if command == "enhance" else "X_xtrimogene"]}


def are_equal(one, other):
    """Return whether two results are the same, numbers to 1e-5."""
    if set(one) != set(other) or any(one[name].shape != other[name].shape for name in one):
        return False
    return all(
        np.allclose(one[name], other[name], atol=1e-5, equal_nan=True)
        if one[name].dtype.kind == "f"
        else np.array_equal(one[name], other[name])
        for name in one
    )


def says_more(ended, before):
    """Return whether a command says that something was left out which it did not say of the whole file."""
    words = ("left out", "is missing", "are missing", "CAUTION", "Beware", "Not converted")
    lines, known = ({*each["stdout"].splitlines(), *each["stderr"].splitlines()} for each in (ended, before))
    return any(word in line for line in lines - known for word in words)


def problem_of(program, path, command, ended, result, whole):
    """Return what is wrong with the end of a command on a damaged file, None if nothing is."""
    text = ended["stdout"] + ended["stderr"]
    if ended["signal"] is not None:
        return f"signal {ended['signal']}"
    if "Traceback" in text:
        return f"a traceback: {text[-300:]}"
    if "unreadable" in ended:
        return f"an output that cannot be read: {ended['unreadable']}"
    if ended["code"] != 0:
        lines = [line for line in ended["stderr"].splitlines() if line.strip()]
        if command == "inspect":
            found = json.loads(ended["stdout"])
            line = found.get("problem") or found.get("error") or ""
            line = line if "problem" not in found else f"{path.name}: {line}"
        else:
            line = lines[-1] if lines else ""
            if not line.startswith("Error: "):
                return f"no line with the error: {text[-300:]}"
        if "was not expected" in line:
            return f"a foreign error: {line}"
        return None if path.name in line else f"a line without the name of the file: {line}"
    before, expected = whole
    if are_equal(result, expected) or says_more(ended, before):
        return None
    return None if program.is_plainly_whole(path) else "ended well on a damaged file"


# -- the test ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forty_cells(real_cells):
    """40 real cells of two types, with counts in X."""
    types = real_cells.obs["bulk_labels"].value_counts().index[:2]
    chosen = np.flatnonzero(real_cells.obs["bulk_labels"].isin(types))[:40]
    cells = real_cells[chosen].copy()
    cells.X = find_counts(real_cells).rows(0, real_cells.n_obs)[chosen]
    cells.obs = cells.obs.rename(columns={"bulk_labels": "cell_type"})
    cells.obs["depth"] = np.arange(40.0)
    cells.var["gene_ids"] = [f"ENSG{number:011d}" for number in range(cells.n_vars)]
    return cells


@pytest.fixture(scope="module")
def whole(forty_cells, tmp_path_factory):
    """A folder with a whole file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    for name, write in KINDS.items():
        write(forty_cells, folder / name)
    return folder


@pytest.fixture(scope="module")
def program(whole, checkpoint, tmp_path_factory):
    program = Program(tmp_path_factory.mktemp("runs"), checkpoint, whole / "cells.h5ad")
    yield program
    program.end()


@pytest.fixture(scope="module")
def of_whole(program, whole):
    """Give how a command ends on the whole file of a kind, and its result."""
    held = {}

    def of_whole(kind, command):
        if (kind, command) not in held:
            ended, result = program.run(command, whole / kind)
            assert result is not None, ended
            held[kind, command] = ended, result
        return held[kind, command]

    return of_whole


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are Linux's")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_give_the_right_result_or_a_line(program, whole, of_whole, kind):
    ends, problems = Counter(), []

    # All damages are tried, and those that fail are told as they are: to shrink one takes longer than to read it.
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(damages_of(kind))
    def check(drawn):
        path = program.folder / "damaged" / kind
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        copy = shutil.copytree if (whole / kind).is_dir() else shutil.copyfile
        copy(whole / kind, path)
        assume(damage(path, *drawn))
        ends["files"] += 1
        for command in COMMANDS:
            ended, result = program.run(command, path)
            if ended["signal"] == signal.SIGXCPU and program.loops_without_us(path):
                ends["stuck in HDF5"] += 1  # h5py alone never ends either: so do all commands
                break
            ends["with a result" if ended["code"] == 0 else "refused"] += 1
            if problem := problem_of(program, path, command, ended, result, of_whole(kind, command)):
                problems.append((drawn, command, problem))
                print(kind, *problems[-1], flush=True)

    check()
    print(f"{kind}: {dict(ends)}, {len(problems)} problems")  # pytest -rP shows it
    assert ends["files"] >= EXAMPLES
    assert not problems
