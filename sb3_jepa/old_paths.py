"""Modules that files of sb3_jepa 0.1 name, and that lie elsewhere now: what was saved then still loads."""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "sb3_jepa.contrib": "sb3_jepa.algorithms.contrib",
    "sb3_jepa.frames": "sb3_jepa.buffers.frames",
    "sb3_jepa.objectives.methods": "sb3_jepa.objectives",
    "sb3_jepa.replay": "sb3_jepa.buffers.replay",
    "sb3_jepa.surprises": "sb3_jepa.envs.vec_surprise",
    "sb3_jepa.teachers": "sb3_jepa.extractors.teachers",
}


class OldPaths(MetaPathFinder, Loader):
    """Lets an import of a module that has moved find the names of the one where they are now."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """How to load a module that no file has; None if it never existed."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module that has its old name."""
        names = vars(import_module(MOVED[module.__name__]))
        vars(module).update({name: value for name, value in names.items() if not name.startswith("__")})


def install() -> None:
    """Look for the old modules where Python finds no file of such a name."""
    sys.meta_path.append(OldPaths())
