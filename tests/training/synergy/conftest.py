"""Measured drug pairs, and tables of a test."""

import pandas as pd
import pytest


@pytest.fixture(scope="session")
def folder(shared):
    return shared / "data" / "drug_synergy"


@pytest.fixture
def write(tmp_path):
    """Write a table as CSV, and return its path."""

    def write(rows, name="table.csv"):
        pd.DataFrame(rows).to_csv(tmp_path / name, index=False, sep="\t" if ".tsv" in name else ",")
        return tmp_path / name

    return write
