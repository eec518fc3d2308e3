"""Command line: files in, files out. It reads options and prints results; the work is done by the package.

    xtrimogene COMMAND FILES -o OUTPUT
        stdout   tables for people; with --json one JSON object and nothing else
        stderr   progress, notes, and errors in one line

Heavy imports are inside the commands, so that `--help` does not wait for them.
"""

from . import training, inference, explanation, data, hub, doctor, evaluation  # isort: skip  # each adds its commands
from .app import app

__all__ = ["app", "data", "doctor", "evaluation", "explanation", "hub", "inference", "training"]
