"""Shared fixtures: makers of tiny models (`tiny.py`)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tiny import FAMILIES, tiny_calibration, tiny_model

from igsp.calibration import CalibrationSet
from igsp.models import LanguageModel


@pytest.fixture
def make_model() -> Callable[..., LanguageModel]:
    return tiny_model


@pytest.fixture
def make_calibration() -> Callable[..., CalibrationSet]:
    return tiny_calibration


@pytest.fixture(scope="session")
def families() -> list[str]:
    return list(FAMILIES)
