"""Keeps the import paths of the last release: an old path gives the module that replaces it.

`llava` and `lrm_ext` each pass `keep_old_paths` a table; every use warns with the new path.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _OldPaths(MetaPathFinder, Loader):
    """Finds modules by their old path; asked only where no file has that path."""

    def __init__(self, moved: Mapping[str, str], renamed: Mapping[str, str]) -> None:
        self.moved, self.renamed = moved, renamed

    def new_path(self, name: str) -> str | None:
        """Returns the path that replaces `name`, by the longest prefix in the table."""
        prefix = name
        while prefix and prefix not in self.moved:
            prefix = prefix.rpartition(".")[0]
        return self.moved[prefix] + name[len(prefix) :] if prefix else None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Describes the module at an old path; see `importlib.abc.MetaPathFinder`."""
        return ModuleSpec(name, self, is_package=True) if self.new_path(name) else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Lets `importlib` make the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Fills the module with what the new path has, under the old names, too."""
        path = str(self.new_path(module.__name__))
        content = vars(import_module(path))
        if "__path__" not in content:  # a package is imported with its modules
            warnings.warn(
                f"{module.__name__} is now {path}; the old path goes with the next release",
                DeprecationWarning,
                stacklevel=2,
            )
        vars(module).update({k: v for k, v in content.items() if not k.startswith("__")})
        for old, new in self.renamed.items():
            if new in content:
                setattr(module, old, content[new])


def keep_old_paths(moved: Mapping[str, str], renamed: Mapping[str, str]) -> None:
    """Makes old import paths work.

    Args:
        moved: Old module or package -> its new path; modules below a package move with it.
        renamed: Old name of a class or function -> its name in the module that has it now.
    """
    sys.meta_path.append(_OldPaths(moved, renamed))
