"""The commands of a rendered project's ops/, as modules."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest


def load(project: Path, name: str) -> ModuleType:
    """Import a command; nothing is written into the project."""
    loader = SourceFileLoader(f"ops_{name}", str(project / "ops" / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(project / "ops")
        patch.setattr(sys, "dont_write_bytecode", True)
        for module_name in ("cluster", "common", "nodes", "successors"):
            sys.modules.pop(module_name, None)  # that of another project
        loader.exec_module(module)
    return module
