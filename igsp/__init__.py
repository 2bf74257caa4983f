"""Calibration data for one-shot pruning of language models: profile, mix, generate, prune, evaluate per capability."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

__version__ = "0.1.0"

# The public interface, loaded on first use so that `import igsp` costs nothing.
_WHERE = {
    "load_model": "igsp.models", "LanguageModel": "igsp.models",
    "sample": "igsp.text.windows", "mix": "igsp.text.windows", "CalibrationSet": "igsp.text.windows",
    "profile": "igsp.text.metrics",
    "prune": "igsp.pruning.driver", "save": "igsp.pruning.driver", "prune_folder": "igsp.pruning.streaming",
    "evaluate": "igsp.scoring.evaluation",
    "retention": "igsp.scoring.retention",
    "advise": "igsp.advise",
}
__all__ = [*_WHERE, "protocols"]  # noqa: F822 (what __getattr__ gives)


class _Package(types.ModuleType):
    """Keeps a function apart from the module of its name: importing `igsp.advise` must not hide `igsp.advise()`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _WHERE and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "protocols":
        return importlib.import_module("igsp.writing")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'igsp' has no attribute '{name}'")
