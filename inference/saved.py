"""Where the files of a checkpoint are: in a folder, or in one commit of a repository on the Hub.

"user/name@v1", or a model loaded from there  ->  Saved("user/name", commit)
Saved  ->  configuration, tokenizer, weights, calibration, all of the same commit
"""

import os
from dataclasses import dataclass
from typing import Any

from ..released import located


@dataclass(frozen=True)
class Saved:
    """A folder, or a commit on the Hub.

    Attributes:
        path: The folder, or the name of the repository.
        revision: The commit; None for a folder.
    """

    path: str
    revision: str | None = None

    def __str__(self) -> str:
        """Return the name by which `of` finds it again: `user/name@commit`, or the folder."""
        return self.path if self.revision is None else f"{self.path}@{self.revision}"

    @classmethod
    def of(cls, model: str | os.PathLike | Any) -> "Saved":
        """Return where a checkpoint is, or where a loaded model came from.

        Args:
            model: A folder, the name of one that comes with the package, a Hub name, which is taken as it is now, a
                Hub name with a branch, tag or commit (`user/name@v1`), or a loaded model.

        Example:
            >>> Saved.of("checkpoint")
            Saved(path='checkpoint', revision=None)
        """
        if hasattr(model, "config"):
            return cls(model.config.name_or_path, getattr(model.config, "_commit_hash", None))
        path = os.fspath(located(model))
        if os.path.exists(path):
            return cls(path)
        from transformers.utils.hub import resolve_revision

        name, _, asked = path.partition("@")
        revision = resolve_revision(name, asked or None)
        return cls(name, getattr(revision, "resolved", revision))  # what is not found is told where it is loaded

    def file(self, name: str) -> str | None:
        """Return the path of one of its files on this machine; None if it has none of this name.

        Example:
            >>> print(Saved.of("checkpoint").file("calibration.safetensors"))
            None
        """
        from transformers.utils import cached_file

        return cached_file(self.path, name, revision=self.revision, _raise_exceptions_for_missing_entries=False)

    def load(self, kind: Any, **options: Any) -> Any:
        """Return what `from_pretrained` of a class of transformers, or of a model, loads from here.

        Args:
            kind: The class, such as `AutoModel`.
            **options: Passed on.

        Example:
            >>> from transformers import AutoModel
            >>> Saved.of("checkpoint").load(AutoModel).config.num_genes
            19264
        """
        return kind.from_pretrained(self.path, revision=self.revision, **options)

    def config(self) -> Any:
        """Return its configuration."""
        from transformers import AutoConfig

        return self.load(AutoConfig)

    def tokenizer(self) -> Any:
        """Return its tokenizer.

        Example:
            >>> Saved.of("checkpoint").tokenizer().num_genes
            19264
        """
        from transformers import AutoTokenizer

        return self.load(AutoTokenizer)
