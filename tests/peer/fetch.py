"""Unpack transformers' own tests of the pinned version, which only its source distribution carries.

`python tests/peer/fetch.py FOLDER` downloads it from the package index and writes the package `transformers_tests`.
Files that they import and that the distribution lacks are written empty: tests of text generation and exporters do
not apply to these models.
"""

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin: ...\n",
    "generation/test_utils.py": "class GenerationTesterMixin: ...\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "fixtures/sample_text.txt": "genes\n",
}


def fetch(folder):
    """Download and unpack into `folder`, unless the tests of the installed version are there."""
    name = f"transformers-{version('transformers')}"
    target = folder / "transformers_tests"
    mark = target / name
    if mark.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    wanted = name.replace("-", "==")
    # pip asks a source distribution for its metadata, for which it sets up what the distribution is built with.
    subprocess.run(
        [*pip, "download", "-q", "--no-binary", "transformers", "--no-deps", "-d", folder, wanted], check=True
    )
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", folder, "parameterized==0.9.0"], check=True)
    with tarfile.open(folder / f"{name}.tar.gz") as archive:
        for member in archive.getmembers():
            if member.name.startswith(f"{name}/tests/") and member.name.endswith(".py"):
                path = target / os.path.relpath(member.name, f"{name}/tests")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.extractfile(member).read())
    for path, text in STUBS.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text, encoding="utf-8")
    for package in (target, *(path for path in target.iterdir() if path.is_dir())):
        (package / "__init__.py").touch()
    mark.touch()


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
