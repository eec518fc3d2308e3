"""`doctor`: versions, devices and memory of this installation."""

import os

import typer

from .command import command
from .options import Printing
from .output import Screen, facts


@command
def doctor(printing: Printing) -> None:
    """Check this installation: versions, devices, memory, and what would make it faster.

    Example: `xtrimogene doctor`

    The exit code is 1 if a package is missing or older than what is needed.
    """
    screen = Screen(printing)

    import platform
    from importlib import util

    import psutil
    import torch
    from transformers.utils import is_flash_attn_2_available

    versions, problems = installed()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    has_mps = torch.backends.mps.is_available()
    threads, cores = (
        torch.get_num_threads(),
        len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)),
    )
    attention = ["sdpa", "eager", *(["flash_attention_2"] if is_flash_attn_2_available() else [])]
    # It is not imported, since that is slow.
    favor = ["native", *(["performer-pytorch"] if util.find_spec("performer_pytorch") else [])]
    has_bfloat16 = torch.cuda.is_bf16_supported() if gpus else has_mps or torch.backends.cpu.get_cpu_capability() in (
        "AVX512", "AMX"
    )  # fmt: skip
    memory = psutil.virtual_memory()
    advice = []
    if not gpus and not has_mps:
        advice.append("no GPU: embedding and small models are fine on a CPU; for 10M and 100M models use a GPU")
    if gpus and "flash_attention_2" not in attention:
        advice.append("flash-attn is not installed: sdpa is used, which is fast as well")
    if threads < cores:
        advice.append(f"torch uses {threads} of {cores} cores: set OMP_NUM_THREADS={cores}")
    found = {
        "platform": platform.platform(),
        "versions": versions,
        "devices": [*gpus, *(["mps"] if has_mps else []), "cpu"],
        "attention": attention,
        "favor_backends": favor,
        "dtypes": ["float32", *(["bfloat16"] if has_bfloat16 else [])],
        "threads": threads,
        "cores": cores,
        "memory_gb": round(memory.total / 1e9, 1),
        "memory_available_gb": round(memory.available / 1e9, 1),
        "problems": problems,
        "advice": advice,
    }
    rows = {
        "platform": found["platform"],
        "devices": ", ".join([*gpus, *(["mps"] if has_mps else []), "cpu"]),
        "attention": f"{', '.join(attention)}; in the decoder {', '.join(favor)}",
        "fast types": ", ".join(["float32", *(["bfloat16"] if has_bfloat16 else [])]),
        "threads": f"{threads} of {cores} cores",
        "memory": f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "faster": "\n".join(advice) or "nothing to do",
    }
    screen.show(facts("xtrimogene doctor", rows))
    screen.show("[bold green]All is well.[/]" if not problems else "[bold red]To mend:[/]", *problems)
    screen.result(found)
    if problems:
        raise typer.Exit(1)


def installed() -> tuple[dict[str, str], list[str]]:
    """Return the versions of Python and of the packages that are needed, and what is missing or too old."""
    import platform
    from importlib import metadata

    from packaging.requirements import Requirement

    versions, problems = {"python": platform.python_version()}, []
    for line in metadata.requires("xtrimogene") or []:
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            versions[needed.name] = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{needed.name} is not installed, {needed.specifier} is needed: pip install '{needed}'")
            continue
        if not needed.specifier.contains(versions[needed.name], prereleases=True):
            problems.append(
                f"{needed.name} is {versions[needed.name]}, {needed.specifier} is needed: pip install -U '{needed}'"
            )
    return versions, problems
