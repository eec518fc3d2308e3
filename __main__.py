"""`python -m xtrimogene`: the program `xtrimogene`."""

from .cli import app

app()
