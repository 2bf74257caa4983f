"""The examples in docstrings give what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import igsp

MODULES = [m.name for m in pkgutil.walk_packages(igsp.__path__, "igsp.") if not m.name.startswith("igsp_book")]
SHOWN = {  # public functions whose docstring must hold an example
    "igsp.text.windows": ["largest_remainder"], "igsp.scoring.correlation": ["spearman", "holm"],
    "igsp.text.ngrams": ["aggregation"], "igsp.study.simplex": ["design", "towards", "whole"],
    "igsp.advise": ["beats"],
    "igsp.provenance": ["duration", "gigabytes"],
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"an optional package is missing: {error}")
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(("module", "names"), SHOWN.items())
def test_public_functions_show_an_example(module, names):
    for name in names:
        assert ">>> " in getattr(importlib.import_module(module), name).__doc__, name
