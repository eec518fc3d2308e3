"""`python -m xtrimogene.cli`, for launchers of several processes."""

from . import app

app()
