"""Reports of evaluations: a page to read, numbers for programs, a table for a README, and comparisons of reports.

    results of protocols  ->  write_report  ->  report.html, metrics.json, table.md
    folders of reports    ->  compare       ->  Markdown

`pages.py` makes the page.
"""

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..measures.results import Score, TaskResult
from .pages import page, picture
from .tables import DIRECTIONS, LEGEND, SEEN, Table, _equal_rows, _markdown, _tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SCHEMA_VERSION = 1  # of metrics.json; a new number if readers of this one would misread it
PACKAGES = ("xtrimogene", "torch", "transformers", "scikit-learn", "numpy")


def write_report(
    output: Path,
    results: Sequence[TaskResult],
    *,
    title: str,
    command: str,
    data: Mapping[str, str],
    seconds: float,
) -> dict[str, Any]:
    """Write `report.html`, `metrics.json` and `table.md` into a folder.

    Args:
        output: The folder, made if it does not exist.
        results: Results of tasks, in the order of the report.
        title: Title of the page.
        command: The command that repeats the evaluation.
        data: Name or path of each file that was read -> its SHA-256 (`data_hash`).
        seconds: Duration of the evaluation.

    Returns:
        The content of `metrics.json`, in which numbers that are not finite are null.

    Raises:
        ValueError: If there are no results, a method has two scores of one metric, a metric has two directions, or the
            folder has a `metrics.json` that is not from an evaluation.

    Example:
        >>> found = Score("annotation", "blood", "small", "accuracy", 0.8, 0.7, 0.9, spread=0.0, seeds=1, units=100)
        >>> result = TaskResult("annotation", "blood", "Five folds.", [found])
        >>> about = {"title": "Blood", "command": "xtrimogene evaluate ...", "data": {}, "seconds": 1.0}
        >>> record = write_report(Path("report"), [result], **about)
        >>> record["results"][0]["scores"][0]["value"], sorted(file.name for file in Path("report").iterdir())
        (0.8, ['metrics.json', 'report.html', 'table.md'])
    """
    if not results:
        raise ValueError("results hold no task, so there is nothing to report: run at least one protocol")
    output = Path(output)
    check_output(output)
    record = _json_values(
        {
            "schema_version": SCHEMA_VERSION,
            "title": title,
            "command": command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": seconds,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "data": dict(data),
            "results": [
                {
                    "task": result.task,
                    "data": result.data,
                    "model": result.scores[0].method if result.scores else None,
                    "protocol": result.protocol,
                    "settings": result.settings,
                    "scores": [asdict(score) for score in result.scores],
                }
                for result in results
            ],
        }
    )
    tables = [_tables(result.scores) for result in results]
    html = _html(record, tables, [result.pictures for result in results])
    text = json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False)
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.html").write_text(html, encoding="utf-8")
    (output / "metrics.json").write_text(text + "\n", encoding="utf-8")
    (output / "table.md").write_text(_markdown([table for group in tables for table in group]), encoding="utf-8")
    return record


def check_output(output: Path) -> None:
    """Check that a report in this folder would replace nothing but a report; call it before hours of evaluation.

    Raises:
        ValueError: If the folder has a `metrics.json` that is not from an evaluation.

    Example:
        >>> check_output(Path("new_folder"))
    """
    if (Path(output) / "metrics.json").exists():  # a training run writes a file of the same name
        _read_report(output)


def compare(folders: Sequence[Path]) -> str:
    """Return a Markdown table for each task and data set with the methods of several reports.

    Models come first. If several reports have the same numbers for a method, it has one row. If the numbers differ, it
    has a row for each report, with the name of the folder after that of the method.

    Args:
        folders: Folders that `write_report` wrote, one for each checkpoint.

    Raises:
        FileNotFoundError: If a folder holds no report.
        ValueError: If a report was written by another version, or reports used different data of the same name.

    Example:
        >>> found = Score("annotation", "blood", "small", "accuracy", 0.8, 0.7, 0.9, spread=0.0, seeds=1, units=100)
        >>> result = TaskResult("annotation", "blood", "Five folds.", [found])
        >>> about = {"title": "Blood", "command": "xtrimogene evaluate ...", "data": {}, "seconds": 1.0}
        >>> _ = write_report(Path("report"), [result], **about)
        >>> "0.800 [0.700, 0.900]" in compare([Path("report")]).replace("*", "")
        True
    """
    reports = {name: _read_report(folder) for name, folder in _short_names(folders).items()}
    _check_same_data(reports)
    found: dict[tuple[str, str], dict[str, list[Score]]] = {}  # (task, data) -> report -> its scores
    settings: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    models = set()
    for name, report in reports.items():
        for result in report["results"]:
            models.add(result["model"])
            for entry in result["scores"]:
                fields: dict[str, Any] = {key: math.nan if value is None else value for key, value in entry.items()}
                score = Score(**fields)
                found.setdefault((score.task, score.data), {}).setdefault(name, []).append(score)
                settings.setdefault((score.task, score.data), {})[name] = result["settings"]
    tables = []
    for place, of_reports in found.items():
        scores = sorted(
            _merge(of_reports), key=lambda pair: pair[0] not in models
        )  # stable: keeps the order of methods
        for table in _tables([score for _, score in scores]):
            tables.append(replace(table, remarks=[*_equal_rows(table.rows), *_differences(settings[place])]))
    return _markdown(tables)


def data_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of all files of a folder, in hexadecimal digits.

    Raises:
        FileNotFoundError: If there is no such file, or the folder holds none.

    Example:
        >>> _ = Path("cells.csv").write_text("gene")
        >>> data_hash("cells.csv")[:12]
        '5ac52c67c10a'
    """
    from ...atomic import file_hash as hash_of_file  # imports torch, which `compare` does not need

    path = Path(path)
    if not path.is_dir():
        return hash_of_file(path)
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    if not files:
        raise FileNotFoundError(f"{path} is a folder without files: there is no data to hash; give the file or folder")
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(json.dumps([name, hash_of_file(files[name])]).encode())
    return whole.hexdigest()


# -- several reports --------------------------------------------------------------------------------------------------


def _read_report(folder: Path) -> dict[str, Any]:
    path = Path(folder) / "metrics.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no metrics.json, so it is no report: evaluate the checkpoint first")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): remove it, and evaluate again") from None
    if not isinstance(report, dict) or "schema_version" not in report:
        raise ValueError(f"{path} is not from an evaluation, as of a training run: give a folder of its own to reports")
    if report["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema {report['schema_version']}, and {SCHEMA_VERSION} can be read: evaluate again, into a "
            f"new folder"
        )
    return report


def _short_names(folders: Sequence[Path]) -> dict[str, Path]:
    if not folders:
        raise ValueError("folders hold no report, so there is nothing to compare: give the folders of two reports")
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    names = [path.name for path in paths]
    return {path.name if names.count(path.name) == 1 else str(path): path for path in paths}


def _check_same_data(reports: Mapping[str, Mapping[str, Any]]) -> None:
    hashes: dict[str, dict[str, set[str]]] = {}  # file name without folder -> report -> its hashes
    for report, content in reports.items():
        for name, digest in content["data"].items():
            hashes.setdefault(Path(name).name, {}).setdefault(report, set()).add(digest)
    for name, of_reports in hashes.items():
        first, *rest = of_reports
        for other in rest:
            if of_reports[other] != of_reports[first]:
                shown = [", ".join(sorted(digest[:12] for digest in of_reports[report])) for report in (first, other)]
                raise ValueError(
                    f"{name} differs between reports: SHA-256 {shown[0]}... in {first}, {shown[1]}... in {other}: "
                    f"evaluate both on the same data, else their scores cannot be compared"
                )


def _merge(of_reports: Mapping[str, Sequence[Score]]) -> list[tuple[str, Score]]:
    """Return method and score; if reports disagree on a method, the score names the report beside the method."""
    of_methods: dict[str, dict[str, list[Score]]] = {}
    for report, scores in of_reports.items():
        for score in scores:
            of_methods.setdefault(score.method, {}).setdefault(report, []).append(score)
    merged = []
    for method, versions in of_methods.items():
        is_agreed = len({json.dumps([asdict(score) for score in scores]) for scores in versions.values()}) == 1
        for report, scores in list(versions.items())[: 1 if is_agreed else None]:
            name = method if is_agreed else f"{method} ({report})"
            merged += [(method, replace(score, method=name)) for score in scores]
    return merged


def _differences(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each setting that differs between reports."""
    sentences = []
    for key in dict.fromkeys(key for of_report in settings.values() for key in of_report):
        values = {report: json.dumps(of_report.get(key)) for report, of_report in settings.items()}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{value} in {report}" for report, value in values.items())
            sentences.append(f"The setting {key} differs: {shown}.")
    return sentences


# -- writing ----------------------------------------------------------------------------------------------------------


def _json_values(value: Any) -> Any:
    """Return values as JSON types: numpy arrays become lists, paths text, and numbers that are not finite null."""

    def plain(other: Any) -> Any:
        return other.tolist() if hasattr(other, "tolist") else str(other)

    return json.loads(json.dumps(value, default=plain), parse_constant=lambda _: None)


def _html(
    record: Mapping[str, Any], tables: Sequence[Sequence[Table]], pictures: Sequence[Mapping[str, "Figure"]]
) -> str:
    tasks = [
        {
            **result,
            "tables": of_result,
            "pictures": {title: picture(figure) for title, figure in figures.items()},
            "settings": {
                name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                for name, value in result["settings"].items()
            },
        }
        for result, of_result, figures in zip(record["results"], tables, pictures, strict=True)
    ]
    return page("report.html", record=record, tasks=tasks, legend=LEGEND, directions=DIRECTIONS, seen=SEEN)
