"""Features of drugs follow from the molecule."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest

from xtrimogene.training.synergy.drugs import DESCRIPTORS, drug_features, read_drugs

SMILES = {"toluene": "Cc1ccccc1", "phenol": "Oc1ccccc1", "ethanol": "CCO", "acetone": "CC(C)=O"}

needs_rdkit = pytest.mark.skipif(not find_spec("rdkit"), reason="needs rdkit: pip install rdkit")


@needs_rdkit
def test_features_are_of_the_molecule_not_of_how_it_is_written():
    features = drug_features({**SMILES, "methylbenzene": "C1=CC=CC=C1C"})
    assert features.loc["toluene"].equals(features.loc["methylbenzene"])
    assert features.loc["ethanol", "MolWt"] == pytest.approx(2 * 12.011 + 6 * 1.008 + 15.999, abs=1e-3)
    assert features.loc["ethanol", "NumHDonors"] == 1
    assert list(features.columns[: len(DESCRIPTORS)]) == list(DESCRIPTORS)
    fragments = features[[name for name in features if name.startswith("morgan2_")]]
    assert ((fragments > 0).sum() >= 2).all()  # each in two drugs at least
    # Atoms are fragments of radius 0: toluene has five aromatic CH, phenol too.
    assert (fragments.loc[["toluene", "phenol"]] == 5).all().any()


@needs_rdkit
def test_features_of_a_trained_model_are_made_for_new_drugs():
    known = drug_features(SMILES)
    columns = list(known.columns[::-1])
    again = drug_features({"ethanol": "OCC", "benzene": "c1ccccc1"}, columns)
    assert list(again.columns) == columns
    assert again.loc["ethanol"].equals(known.loc["ethanol", columns])


@needs_rdkit
def test_all_real_drugs_have_finite_features_that_tell_them_apart(folder):
    features = drug_features(read_drugs(folder / "oneil_drugs_smiles.csv"))
    assert len(features) == 38
    assert np.isfinite(features.to_numpy()).all()
    assert not features.duplicated().any()


@needs_rdkit
def test_unfit_drugs_are_refused(write, monkeypatch):
    with pytest.raises(ValueError, match=r"1 of 5 drugs have no valid SMILES: broken \('C1CC'\)"):
        drug_features({**SMILES, "broken": "C1CC"})
    with pytest.raises(ValueError, match=r"nothing \(''\)"):
        drug_features({**SMILES, "nothing": ""})
    with pytest.raises(ValueError, match="0 of 0 drugs"):
        drug_features({})
    with pytest.raises(ValueError, match="1 of 2 drug features are not known: NoDescriptor"):
        drug_features(SMILES, ["MolWt", "NoDescriptor"])
    with pytest.raises(ValueError, match="no column smiles; there are drug, SMILES"):
        read_drugs(write({"drug": ["A"], "SMILES": ["C"]}))
    with pytest.raises(ValueError, match="1 drugs have more than one SMILES: A"):
        read_drugs(write({"drug": ["A", "A", "B"], "smiles": ["C", "CC", "C"]}))
    with pytest.raises(ValueError, match="1 of 2 rows have no name or no SMILES: B"):
        read_drugs(write({"drug": ["A", "B"], "smiles": ["C", None]}))
    assert read_drugs(write({"drug": ["A", "A"], "smiles": ["C", "C"], "plate": [1, 2]})) == {"A": "C"}
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match="pip install rdkit"):
        drug_features(SMILES)
