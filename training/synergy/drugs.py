"""Structures of drugs, and features computed from them."""

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...records import first_names
from .measurements import read_table

if TYPE_CHECKING:
    import pandas as pd


MORGAN_RADIUS = 2
FRAGMENT = "morgan2_"  # followed by the unfolded hash of the fragment, so that no two fragments share a column
# Descriptors of whole molecules. Those of partial charges are left out: they fail for drugs with metals or boron.
DESCRIPTORS = (
    "MolWt", "MolLogP", "MolMR", "TPSA", "LabuteASA", "FractionCSP3", "BertzCT", "HallKierAlpha", "qed",
    "HeavyAtomCount", "NumValenceElectrons", "NumHeteroatoms", "NumHAcceptors", "NumHDonors", "NHOHCount", "NOCount",
    "NumRotatableBonds", "RingCount", "NumAromaticRings", "NumAliphaticRings", "NumSaturatedRings",
    "NumAromaticHeterocycles", "NumAromaticCarbocycles", "NumAliphaticHeterocycles", "NumSaturatedHeterocycles",
    "Kappa1", "Kappa2", "Kappa3", "Chi0v", "Chi1v",
)  # fmt: skip


def read_drugs(path: str | os.PathLike, drug_column: str = "drug", smiles_column: str = "smiles") -> dict[str, str]:
    """Return drug -> SMILES from a CSV or TSV file.

    Args:
        path: CSV or TSV file with a header.
        drug_column: Column with the names of the drugs.
        smiles_column: Column with their SMILES.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, or a drug has no SMILES or two different ones.

    Example:
        >>> import pandas as pd
        >>> pd.DataFrame({"drug": ["aspirin"], "smiles": ["CC(=O)OC1=CC=CC=C1C(=O)O"]}).to_csv("drugs.csv", index=False)
        >>> read_drugs("drugs.csv")
        {'aspirin': 'CC(=O)OC1=CC=CC=C1C(=O)O'}
    """
    table = read_table(path, [drug_column, smiles_column])[[drug_column, smiles_column]]
    names = table[drug_column].astype(str)
    without = names[table[smiles_column].isna() | table[drug_column].isna()]
    if len(without):
        raise ValueError(
            f"{path}: {len(without)} of {len(table)} rows have no name or no SMILES: {first_names(without)}"
        )
    table = table.drop_duplicates()
    repeated = names[table.index][table[drug_column].duplicated()]
    if len(repeated):
        raise ValueError(
            f"{path}: {len(repeated)} drugs have more than one SMILES: {first_names(repeated)}; keep one of each"
        )
    return dict(zip(names[table.index], table[smiles_column], strict=True))


def drug_features(smiles: Mapping[str, str], columns: Sequence[str] | None = None) -> "pd.DataFrame":
    """Return features of drugs: counts of Morgan fragments of radius 2, and descriptors of the whole molecule.

    Args:
        smiles: SMILES of each drug.
        columns: Features to return, such as `config.drug_features` of a trained model. Unless given, these are
            `DESCRIPTORS` and the fragments that at least two of the drugs have: a fragment of one drug tells a model
            nothing about other drugs.

    Returns:
        Float32, one row for each drug and one column for each feature, not standardised.

    Raises:
        ImportError: If rdkit is not installed.
        ValueError: If a SMILES is invalid, or a column is no known feature.

    Example:
        >>> drugs = {"aspirin": "CC(=O)OC1=CC=CC=C1C(=O)O", "phenol": "C1=CC=C(C=C1)O"}
        >>> drug_features(drugs, ["MolWt", "RingCount"]).round(1).to_dict("index")  # doctest: +SKIP
        {'aspirin': {'MolWt': 180.2, 'RingCount': 1.0}, 'phenol': {'MolWt': 94.1, 'RingCount': 1.0}}
    """
    pandas = importlib.import_module("pandas")
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import Descriptors, rdFingerprintGenerator
    except ImportError as error:
        raise ImportError("features of drugs need rdkit, which is not installed: pip install rdkit") from error

    with rdBase.BlockLogs():
        molecules = {name: Chem.MolFromSmiles(text) if text else None for name, text in smiles.items()}
    invalid = [f"{name} ({smiles[name]!r})" for name, molecule in molecules.items() if molecule is None]
    if invalid or not smiles:
        raise ValueError(f"{len(invalid)} of {len(smiles)} drugs have no valid SMILES: {first_names(invalid)}")
    morgan = rdFingerprintGenerator.GetMorganGenerator(radius=MORGAN_RADIUS)
    counts = {
        name: {FRAGMENT + str(key): n for key, n in morgan.GetSparseCountFingerprint(it).GetNonzeroElements().items()}
        for name, it in molecules.items()
    }
    if columns is None:
        fragments, num_drugs = np.unique([key for found in counts.values() for key in found], return_counts=True)
        columns = [*DESCRIPTORS, *(str(fragment) for fragment in fragments[num_drugs > 1])]
    unknown = [name for name in columns if not name.startswith(FRAGMENT) and not hasattr(Descriptors, name)]
    if unknown:
        raise ValueError(f"{len(unknown)} of {len(columns)} drug features are not known: {first_names(unknown)}")
    rows = [
        [
            counts[drug].get(name, 0) if name.startswith(FRAGMENT) else getattr(Descriptors, name)(molecule)
            for name in columns
        ]
        for drug, molecule in molecules.items()
    ]
    features = pandas.DataFrame(np.asarray(rows, np.float32), index=list(smiles), columns=list(columns))
    failed = features.index[~np.isfinite(features).all(axis=1)]
    if len(failed):
        raise ValueError(
            f"{len(failed)} of {len(features)} drugs have descriptors that are no numbers: {first_names(failed)}"
        )
    return features
