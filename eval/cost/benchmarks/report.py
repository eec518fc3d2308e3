"""Table and picture of the benchmarks."""

from pathlib import Path
from typing import Any

from ...report.colours import COLOURS, MARKERS


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table: seconds, times as fast as the peer, share of the ceiling, memory."""
    lines = [
        "Times as fast as the peer in float32: one cell at a time for B1, performer-pytorch for B3, a dense matrix for "
        "B5, else the reference. Shares are of the ceiling measured with the case: shared cores reach less at times.",
        "",
        "| case | variant | seconds | x peer, default | x peer, tuned | GFLOP/s, of float32 ceiling | GiB of a step |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(key.split()[0] for key in results if key.endswith((" default", " tuned"))):
        if name == "growth":
            continue
        default, tuned = results[f"{name} default"], results[f"{name} tuned"]
        for variant, seconds in tuned["seconds"].items():
            speeds = [found["times as fast as the peer"][variant] for found in (default, tuned)]
            rate = tuned["gigaflops as written"] / seconds
            share = rate / tuned["ceiling"]["float32"]
            peak = default.get("GiB", {}).get(variant)
            lines.append(
                f"| {name}: {tuned['title']} | {variant} | {seconds:.3g} | {speeds[0]:.2f} | {speeds[1]:.2f} "
                f"| {f'{rate:.0f}, {share:.0%}' if rate else '-'} | {f'{peak:.2f}' if peak else '-'} |"
            )
    if "growth tuned" in results:
        lines += ["", "| cost of a step against | exponent of seconds | exponent of FLOPs |", "|---|---|---|"]
        for name, found in results["growth tuned"].items():
            if "exponents" in found:
                fitted = found["exponents"]
                lines.append(f"| {name} | {fitted['seconds']:.2f} | {fitted['gigaflops']:.2f} |")
        header = "| genes of the panel | GFLOP of a step, ours | Performer, by formula | dense, by formula |"
        lines += ["", header, "|---|---|---|---|"]
        growth = results["growth tuned"]
        for ours, others in zip(growth["genes"]["points"], growth["others"], strict=True):
            costs = ours["gigaflops"], others["Performer"], others["dense"]
            lines.append(f"| {ours['genes']:,} | {' | '.join(f'{cost:,.0f}' for cost in costs)} |")
    return "\n".join(lines) + "\n"


def picture(results: dict[str, Any], path: Path) -> None:
    """Draw the speed of each variant relative to its peer, and the growth of a step's time with size."""
    from matplotlib.figure import Figure

    names = [key.removesuffix(" tuned") for key in sorted(results) if "seconds" in results[key] and " tuned" in key]
    bars = [
        (f"{name}  {variant}", *(results[f"{name} {kind}"]["times as fast as the peer"][variant] for kind in KINDS))
        for name in names
        for variant in results[f"{name} tuned"]["seconds"]
        if variant.startswith("ours")
    ]
    figure = Figure(figsize=(12, max(4, 0.34 * len(bars) + 1)), layout="constrained")
    growth = {name: found for name, found in results.get("growth tuned", {}).items() if "exponents" in found}
    left, *others = figure.subplots(1, 2 if growth else 1, width_ratios=[3, 2] if growth else None, squeeze=False)[0]
    for offset, (kind, color) in enumerate(zip(KINDS, (COLOURS[3], COLOURS[0]), strict=True)):
        heights = [bar[1 + offset] for bar in bars]
        places = [index + 0.38 * (offset - 0.5) for index in range(len(bars))]
        left.barh(places, heights, height=0.36, color=color, label=f"allocator {kind}")
    left.axvline(1, color="black", linewidth=1)
    left.set_title("times as fast as the peer in float32 (B5: a dense matrix)", loc="left")
    left.set_yticks(range(len(bars)), [bar[0] for bar in bars])
    left.invert_yaxis()
    left.set_xlabel("times as fast")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
    for axes in others:
        for (name, found), colour, marker in zip(growth.items(), COLOURS, MARKERS, strict=False):
            points = found["points"]
            label = f"{name}: exponent {found['exponents']['seconds']:.2f}"
            relative = [point[name] / points[0][name] for point in points]
            axes.plot(relative, [point["seconds"] for point in points], color=colour, marker=marker, label=label)
        axes.set(xscale="log", yscale="log", xlabel="size, of the smallest", ylabel="seconds of a step")
        axes.set_title("growth of a pre-training step", loc="left")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    left.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


KINDS = ("default", "tuned")
