"""Reports of evaluations: `report.py` writes them, `tables.py` lays out scores, `pictures.py` draws."""
