"""Register the pipelines for cells in transformers: `pipeline("cell-embedding")` and `pipeline("cell-annotation")`.

transformers imports its pipelines when somebody asks for one, and that takes longer than `import xtrimogene`. So ours
are registered right after that import, by a finder of modules that waits for it.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

AWAITED = "transformers.pipelines"


def register_pipelines() -> None:
    """Register the pipelines now if those of transformers are imported, else right after they are.

    Example:
        >>> from transformers.pipelines import PIPELINE_REGISTRY
        >>> register_pipelines()
        >>> PIPELINE_REGISTRY.check_task("cell-embedding")[1]["impl"].split(".")[-1]
        'CellEmbeddingPipeline'
    """
    module = sys.modules.get(AWAITED)
    if module is None:
        if not any(isinstance(finder, Waiting) for finder in sys.meta_path):
            sys.meta_path.insert(0, Waiting())
    elif hasattr(module, "PIPELINE_REGISTRY"):
        add_to(module)


def add_to(module: Any) -> None:
    """Add the pipelines to the registry in the module `transformers.pipelines`, which imports them when used."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    ours = {
        "cell-embedding": ("CellEmbeddingPipeline", AutoModel),
        "cell-annotation": ("CellAnnotationPipeline", AutoModelForSequenceClassification),
    }
    for task, (name, auto_class) in ours.items():
        impl = f"{__package__}.modeling_xtrimogene.pipelines_xtrimogene.{name}"
        module.PIPELINE_REGISTRY.supported_tasks[task] = {"impl": impl, "pt": (auto_class,), "default": {}}


class Waiting(MetaPathFinder):
    """Wait for the import of `transformers.pipelines`, and register the pipelines right after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return None for all modules but the awaited one; for that one what other finders find, with ours added."""
        if fullname != AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run_module = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run_module(module)
                add_to(module)

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec
