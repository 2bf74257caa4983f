"""Calibration data for one-shot pruning of language models: profile, mix, generate, prune, evaluate per capability."""

from __future__ import annotations

import importlib
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


def __getattr__(name: str) -> Any:
    if name == "protocols":
        return importlib.import_module("igsp.writing")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'igsp' has no attribute '{name}'")
