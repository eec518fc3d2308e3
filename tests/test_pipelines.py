"""The pipelines are registered when transformers imports its own, and not before."""

import subprocess
import sys

import pytest
from transformers.pipelines import PIPELINE_REGISTRY

import xtrimogene.pipelines
from xtrimogene.modeling_xtrimogene.pipelines_xtrimogene import CellAnnotationPipeline, CellEmbeddingPipeline


def test_the_registry_knows_the_pipelines_once():
    for task, impl in (("cell-embedding", CellEmbeddingPipeline), ("cell-annotation", CellAnnotationPipeline)):
        assert PIPELINE_REGISTRY.check_task(task)[1]["impl"] is impl
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
