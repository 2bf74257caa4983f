"""Shared fixtures: makers of tiny models (`tiny.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from tiny import FAMILIES, tiny_calibration, tiny_model

from igsp.models import LanguageModel
from igsp.text.windows import CalibrationSet


@pytest.fixture(autouse=True)
def process_wide_settings_stay() -> Iterator[None]:
    """Nothing may leave torch's matmul precision changed: every float32 product after it would be another."""
    before = torch.get_float32_matmul_precision()
    yield
    assert torch.get_float32_matmul_precision() == before


@pytest.fixture
def make_model() -> Callable[..., LanguageModel]:
    return tiny_model


@pytest.fixture
def make_calibration() -> Callable[..., CalibrationSet]:
    return tiny_calibration


@pytest.fixture(scope="session")
def families() -> list[str]:
    return list(FAMILIES)
