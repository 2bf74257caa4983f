"""One error format for everything that enters: where, which key, which rule, what was given, the nearest spelling."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from igsp.errors import UnknownName, UsageError, checked

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Part(BaseModel):
    model_config = STRICT
    draws: int = Field(1, ge=1)


class Toy(BaseModel):
    model_config = STRICT
    n: Annotated[int, Field(ge=1)]
    share: float = Field(0.5, ge=0, lt=1)
    measure: Literal["likelihood", "accuracy"] = "likelihood"
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    grid: Annotated[tuple[Part, ...], Field(strict=False)] = ()
    source: str = "c4"

    @field_validator("source")
    @classmethod
    def known(cls, value: str) -> str:
        if value == "here":
            raise UsageError("must lie elsewhere")
        if value != "c4":
            raise UnknownName("source", value, ["c4", "alpaca"])
        return value


def test_what_is_right_comes_back_as_the_model():
    found = checked(Toy, {"n": 3, "grid": [{"draws": 2}]}, "x.yaml")
    assert (found.n, found.share, found.grid[0].draws) == (3, 0.5, 2)


@pytest.mark.parametrize(("given", "error", "message"), [
    (5, UsageError, "x.yaml must be a mapping of n, share, .*, got 5"),
    ({}, UsageError, "x.yaml: n is missing"),
    ({"n": 0}, UsageError, "x.yaml, line 3: n must be greater than or equal to 1, got 0"),
    ({"n": True}, UsageError, "n must be a whole number, got True"),
    ({"n": 1, "share": float("nan")}, UsageError, "share must be a finite number, got nan"),
    ({"n": 1, "weights": {"c4": -1}}, UsageError, r"weights\.c4 must be greater than 0, got -1"),
    ({"n": 1, "weights": {5: 1}}, UsageError, r"weights\.5 must be a string, got 5"),
    ({"n": 1, "weights": [1]}, UsageError, r"weights must be a mapping, got \[1\]"),
    ({"n": 1, "grid": 5}, UsageError, "grid must be a list, got 5"),
    ({"n": 1, "grid": ["c4"]}, UsageError, r"grid\.0 must be a mapping, got 'c4'"),
    ({"n": 1, "grid": [{"draw": 1}]}, UnknownName, r"'draw': did you mean draws\? \(x\.yaml, in grid\.0\)"),
    ({"n": 1, "shares": 0.5}, UnknownName, r"'shares': did you mean share.* \(x\.yaml\)"),
    ({"n": 1, 5: 0.5}, UsageError, "got 5"),
    ({"n": 1, "measure": "acuracy"}, UnknownName, "measure 'acuracy': did you mean accuracy"),
    ({"n": 1, "measure": [1]}, UnknownName, "known: accuracy, likelihood"),
    ({"n": 1, "source": "alpacca"}, UnknownName, r"did you mean alpaca\? \(x\.yaml: source\)"),
    ({"n": 1, "source": "here"}, UsageError, "x.yaml: source: must lie elsewhere"),
])
def test_what_is_wrong_is_told_with_its_place(given, error, message):
    with pytest.raises(error, match=message):
        checked(Toy, given, "x.yaml", {"n": 3})
