"""Tables of a report: a row for each method, a column for each metric, and sentences that compare with baselines."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from ..measures.results import Score

ARROWS = {True: "↑", False: "↓", None: ""}
DIRECTIONS = {"↑": "higher is better", "↓": "lower is better", "": ""}
NOTHING = "-"  # shown if there is no score
SEEN = "trained on these cells"
LEGEND = (
    "Each cell holds the mean over seeds and its 95 % bootstrap interval; where there are several seeds, ± is their "
    "standard deviation. ↑: higher is better, ↓: lower is better; without an arrow neither is. The best of each column "
    "is bold."
)


@dataclass(frozen=True)
class Cell:
    """A score as text, `value [interval] ± spread`; missing parts are empty."""

    value: str
    interval: str = ""
    spread: str = ""
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """Methods by metrics on one data set.

    Attributes:
        title: Task and data set.
        metrics: Name and arrow of each metric.
        rows: For each method its name, its seeds and units, and a cell for each metric.
        remarks: Sentences below the table.
        seen: Method -> how many of the evaluated cells it was trained on; empty if the task does not say.
    """

    title: str
    metrics: list[tuple[str, str]]
    rows: list[tuple[str, str, list[Cell]]]
    remarks: list[str]
    seen: dict[str, str]


def _tables(scores: Sequence[Score]) -> list[Table]:
    """Return a table for each data set, in the order of the scores; the method of the first score is the model."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.task, score.data), []).append(score)
    return [_table(f"{task}: {data}", group, scores[0].method) for (task, data), group in groups.items()]


def _table(title: str, scores: Sequence[Score], model: str) -> Table:
    grid: dict[str, dict[str, Score]] = {}
    for score in scores:
        row = grid.setdefault(score.method, {})
        if score.metric in row:
            raise ValueError(
                f"{title}: {score.method} has two scores of {score.metric}: give each data a name of its own"
            )
        row[score.metric] = score
    columns: dict[str, list[Score]] = {}
    for score in scores:
        columns.setdefault(score.metric, []).append(score)
    for metric, column in columns.items():
        if len({score.higher_is_better for score in column}) > 1:
            raise ValueError(f"{title}: {metric} has two directions: its scores differ in higher_is_better")
    best = {metric: max(map(_goodness, column)) for metric, column in columns.items()}
    best |= {metric: math.nan for metric, column in columns.items() if column[0].higher_is_better is None}
    decimals = {metric: _decimals([score.value for score in column]) for metric, column in columns.items()}
    rows = []
    for method in sorted(grid, key=lambda name: name != model):  # a stable sort: other methods stay in their order
        row = grid[method]
        cells = [
            _cell(row[metric], best[metric], decimals[metric]) if metric in row else Cell(NOTHING) for metric in columns
        ]
        rows.append((method, _seeds_and_units(row.values()), cells))
    arrows = [(metric.replace("_", " "), ARROWS[column[0].higher_is_better]) for metric, column in columns.items()]
    seen = {score.method: score.seen for score in scores if score.seen}
    return Table(title, arrows, rows, [*_verdicts(columns, model, decimals), *_equal_rows(rows)], seen)


def _equal_rows(rows: Sequence[tuple[str, str, list[Cell]]]) -> list[str]:
    """Return a sentence for each group of methods with the same numbers, which would look like an error."""
    groups: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
    for method, _, cells in rows:
        if any(cell.value != NOTHING for cell in cells):
            shown = tuple((cell.value, cell.interval, cell.spread) for cell in cells)
            groups.setdefault(shown, []).append(_named(method))
    return [
        f"{', '.join(names[:-1])} and {names[-1]} have the same scores here, in every column."
        for names in groups.values()
        if len(names) > 1
    ]


def _cell(score: Score, best: float, decimals: int) -> Cell:
    if not math.isfinite(score.value):
        return Cell(NOTHING)
    return Cell(
        value=_fixed(score.value, decimals),
        interval=f"[{_fixed(score.low, decimals)}, {_fixed(score.high, decimals)}]" if _has_interval(score) else "",
        spread=f"± {_fixed(score.spread, decimals)}" if score.seeds > 1 and math.isfinite(score.spread) else "",
        is_best=_goodness(score) == best,
    )


def _verdicts(columns: Mapping[str, Sequence[Score]], model: str, decimals: Mapping[str, int]) -> list[str]:
    """Return a sentence for each metric in which another method beats the model, with both values."""
    sentences, num_compared = [], 0
    for metric, column in columns.items():
        if column[0].higher_is_better is None:
            continue
        name = metric.replace("_", " ")
        ours = next((score for score in column if score.method == model), None)
        others = [score for score in column if score.method != model and math.isfinite(score.value)]
        if ours is None or not math.isfinite(ours.value):
            sentences.append(f"{_named(model)} has no value for {name}.")
            continue
        num_compared += bool(others)
        shown = {score.method: _fixed(score.value, decimals[metric]) for score in column}
        others = [score for score in others if shown[score.method] != shown[model]]
        better = [score for score in others if _goodness(score) > _goodness(ours)]
        if not better:
            continue
        first, *rest = sorted(better, key=_goodness, reverse=True)
        overlap = ""
        if _has_interval(first) and _has_interval(ours):
            is_apart = first.low > ours.high or first.high < ours.low
            overlap = "; their 95 % intervals do not overlap" if is_apart else "; their 95 % intervals overlap"
        names = ", ".join(_named(score.method) for score in rest)
        also = f" So {'is' if len(rest) == 1 else 'are'} {names}." if rest else ""
        sentences.append(
            f"{_named(first.method)} is better than {_named(model)} in {name}: {shown[first.method]} against "
            f"{shown[model]}{overlap}.{also}"
        )
    if num_compared and not sentences:
        sentences.append(f"No other method here is better than {_named(model)} in any of these metrics.")
    return sentences


def _named(method: str) -> str:
    """Return the name of a method for a sentence, in quotation marks if it has a comma."""
    return f"“{method}”" if "," in method else method


def _goodness(score: Score) -> float:
    if not math.isfinite(score.value):
        return -math.inf
    return score.value if score.higher_is_better else -score.value


def _has_interval(score: Score) -> bool:
    return math.isfinite(score.low) and math.isfinite(score.high)


def _decimals(values: Iterable[float]) -> int:
    """Return the number of decimals that shows three digits of the median value; correlations get three decimals."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    exponent = math.floor(math.log10(median(sizes))) if sizes else 0
    return min(max(3 - exponent if exponent >= 0 else 2 - exponent, 0), 9)


def _fixed(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # + 0.0: no "-0.000"


def _seeds_and_units(scores: Iterable[Score]) -> str:
    seeds, units = ({getattr(score, name) for score in scores} for name in ("seeds", "units"))
    parts = [f"{' or '.join(f'{number:,}' for number in sorted(numbers))}" for numbers in (seeds, units)]
    return f"{parts[0]} seed{'s' if seeds != {1} else ''}, {parts[1]} units"


def _markdown(tables: Sequence[Table]) -> str:
    lines = [LEGEND, ""]
    for table in tables:
        about = ["method", *([SEEN] if table.seen else [])]
        headers = [*about, *(f"{name} {arrow}".strip() for name, arrow in table.metrics)]
        lines += [f"### {_escaped(table.title)}", "", _line(map(_escaped, headers))]
        lines.append(_line([*["---"] * len(about), *["---:"] * len(table.metrics)]))
        for method, _, cells in table.rows:
            shown = [
                " ".join(
                    filter(None, (f"**{cell.value}**" if cell.is_best else cell.value, cell.interval, cell.spread))
                )
                for cell in cells
            ]
            seen = [_escaped(table.seen.get(method, NOTHING))] if table.seen else []
            lines.append(_line([_escaped(method), *seen, *shown]))
        lines += ["", *(f"* {_escaped(remark)}" for remark in table.remarks), *([""] if table.remarks else [])]
    return "\n".join(lines).rstrip() + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Return text in one line with escaped Markdown characters."""
    for character in "\\`*[]|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())
