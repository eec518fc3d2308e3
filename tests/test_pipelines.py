"""The pipelines are registered when transformers imports its own, and not before."""

import importlib
import subprocess
import sys

import pytest
from transformers.pipelines import PIPELINE_REGISTRY

import xtrimogene.pipelines


def test_the_registry_knows_the_pipelines_once():
    for task, name in (("cell-embedding", "CellEmbeddingPipeline"), ("cell-annotation", "CellAnnotationPipeline")):
        module, found = PIPELINE_REGISTRY.check_task(task)[1]["impl"].rsplit(".", 1)
        assert getattr(importlib.import_module(module), found).__name__ == name
    before = dict(PIPELINE_REGISTRY.supported_tasks)
    xtrimogene.pipelines.register_pipelines()
    assert PIPELINE_REGISTRY.supported_tasks == before


@pytest.mark.slow  # an interpreter imports everything; tests/test_hub.py has the same on its way
def test_what_is_imported_first_does_not_matter():
    code = (
        "import sys, xtrimogene; assert 'transformers.pipelines' not in sys.modules; "
        "from transformers.pipelines import PIPELINE_REGISTRY; "
        "print('cell-embedding' in PIPELINE_REGISTRY.supported_tasks); "
        "print(any(type(finder).__name__ == 'Waiting' for finder in sys.meta_path))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
