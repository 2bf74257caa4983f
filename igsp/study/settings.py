"""Settings of a study: one YAML per profile (`catalog/profiles/`, or a file of one's own), any key overridable."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
from collections.abc import Callable, Collection
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from igsp import writing
from igsp.assets import catalog
from igsp.errors import UnknownName, UsageError, checked
from igsp.models import DTYPES, resolve_device, resolve_dtype
from igsp.pruning.driver import STEPS
from igsp.pruning.solvers import SOLVERS, parse_pattern
from igsp.text.catalogue import catalogue
from igsp.text.windows import CalibrationSet
from igsp.writing import Selection

PROTOCOLS: dict[str, Callable[..., CalibrationSet]] = {
    "self-cal": writing.self_cal, "sgs": writing.sgs, "igsp": writing.igsp,
}
# Rules that choose n windows from one pool of candidates: their function; `select` is IGSP's.
CHOICES: dict[str, Callable[..., Selection]] = {
    "igsp": writing.select, "random": writing.random_choice, "lowest-perplexity": writing.lowest_perplexity,
    "lexical-diversity": writing.lexical_diversity, "activation-k-means": writing.activation_kmeans,
}
# Groups of strategies that a part of the grid may name, and the kind of strategy that each holds.
GROUPS = {"sources": "source", "mixes": "mix", "protocols": "protocol", "selections": "selection"}
# Settings that change no record: they say which cells there are, where they are computed, how they are told.
_ELSEWHERE = {"profile", "method", "sparsity", "pattern", "draws", "grid", "measure", "web", "device", "dtype"}
# What a study gives to protocols and choices.
_GIVEN = {"lm", "pool", "n", "seqlen", "seed", "progress", "resume", "changes"}
_FILE_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]{0,79}", re.ASCII)

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Weights = Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)]
Options = dict[str, Any]


def _known(kind: str, name: object, known: Collection[str]) -> None:
    if not isinstance(name, str) or name not in known:
        raise UnknownName(kind, str(name), known)


class Part(BaseModel):
    """A part of the grid. What it leaves out: every strategy, and the method, sparsity or pattern, and draws of all."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    strategies: Annotated[list[str], Field(min_length=1)] | None = None
    methods: Annotated[list[str], Field(min_length=1)] | None = None
    sparsities: Annotated[list[Share], Field(min_length=1)] | None = None
    patterns: Annotated[list[str], Field(min_length=1)] | None = None
    draws: Count | None = None


class Settings(BaseModel):
    """Everything a study depends on.

    With a `pattern`, `sparsity` is the share of weights that the pattern removes, whatever else was written.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    profile: str
    model: str
    method: str
    sparsity: Share
    pattern: str | None
    order: str
    n: Count
    seqlen: Count
    draws: Count
    seed: int = Field(ge=0)
    suite: str
    device: str
    dtype: str
    sources: Annotated[tuple[str, ...], Field(strict=False)]
    uniform: Weights
    web: str
    protocols: dict[str, Options] = Field(default_factory=dict)
    pool: Options = Field(default_factory=dict)
    selections: dict[str, Options] = Field(default_factory=dict)
    grid: Annotated[tuple[Part, ...], Field(strict=False, min_length=1)] = (Part(),)
    measure: Literal["likelihood", "accuracy"] = "likelihood"
    run_code: bool = False

    @field_validator("method")
    @classmethod
    def _method(cls, value: str) -> str:
        _known("method", value, SOLVERS)
        return value

    @field_validator("order")
    @classmethod
    def _order(cls, value: str) -> str:
        _known("order", value, STEPS)
        return value

    @field_validator("dtype")
    @classmethod
    def _dtype(cls, value: str) -> str:
        _known("dtype", value, [*DTYPES, "auto"])
        return value

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        try:
            torch.device("cpu" if value == "auto" else value)
        except RuntimeError:
            raise UsageError("must be auto, cpu, cuda or cuda:N") from None
        return value

    @field_validator("sources", "uniform", "web")
    @classmethod
    def _sources(cls, value: Any) -> Any:
        for source in [value] if isinstance(value, str) else value:
            _known("source", source, catalogue())
        return value

    @field_validator("uniform")
    @classmethod
    def _whole(cls, value: dict[str, float]) -> dict[str, float]:
        return {name: int(weight) if weight.is_integer() else weight for name, weight in value.items()}

    @model_validator(mode="before")
    @classmethod
    def _true_sparsity(cls, values: dict[str, Any]) -> dict[str, Any]:
        pattern = parse_pattern(values.get("pattern"))
        return values if pattern is None else values | {"sparsity": pattern.sparsity}

    @model_validator(mode="after")
    def _names(self) -> Settings:
        taken = {*self.sources, "uniform", "all-sources"}
        for name in (*self.protocols, *self.selections):
            if not _FILE_NAME.fullmatch(name) or name in taken:
                raise UsageError(f"'{name}' cannot name a strategy: letters, digits, '.', '_', '-', and no name twice")
            taken.add(name)
        for name, options in self.protocols.items():
            protocol = options.get("protocol", name)
            _known("protocol", protocol, PROTOCOLS)
            _options(f"protocol '{name}'", options, {"protocol", *_parameters(PROTOCOLS[protocol], protocol)})
        for name, options in self.selections.items():
            _known("selection rule", options.get("rule"), CHOICES)
            _options(f"selection '{name}'", options, {"rule", *_parameters(CHOICES[options["rule"]])})
        _options("pool", self.pool, _parameters(writing.candidate_pool, "igsp"))
        for number, part in enumerate(self.grid, 1):
            where = f"of part {number} of the grid"
            for name in part.strategies or ():
                _known(f"strategy {where}", name, taken | set(GROUPS))
            for method in part.methods or ():
                _known(f"method {where}", method, SOLVERS)
            for pattern in part.patterns or ():
                parse_pattern(pattern)
        return self

    def leaves(self, plain: Settings) -> str:
        """What makes records of these settings others than those of `plain`: `+n=8+seqlen=64`, or nothing."""
        found = []
        for key in sorted(type(self).model_fields.keys() - _ELSEWHERE):
            if (value := getattr(self, key)) != getattr(plain, key):
                text = value if isinstance(value, (str, int)) else json.dumps(value, sort_keys=True)
                short = hashlib.sha256(str(text).encode()).hexdigest()[:8]
                found.append(f"+{key}={text if _FILE_NAME.fullmatch(str(text)) else short}")
        ours, theirs = arithmetic(self), arithmetic(plain)
        return "".join([*found, *(f"+{key}={ours[key]}" for key in ours if ours[key] != theirs[key])])


def arithmetic(s: Settings) -> dict[str, str]:
    """Kind of device and number format that a study computes with; a device given by name need not be here."""
    device = resolve_device(s.device) if s.device in ("auto", "cpu") else torch.device(s.device)
    return {"device": device.type, "dtype": str(resolve_dtype(s.dtype, device)).removeprefix("torch.")}


def _options(what: str, options: Options, known: Collection[str]) -> None:
    """Options of a protocol or rule: known ones, numbers finite and not below zero; oversample above it."""
    for key, value in options.items():
        _known(f"option of {what}", key, known)
        number = isinstance(value, (int, float))
        if (number and not 0 <= value < math.inf) or (key == "oversample" and (not number or not value)):
            raise UsageError(f"{what}: {key} cannot be {value!r}")


def _parameters(function: Callable[..., Any], protocol: str = "") -> set[str]:
    """Options that a function takes of a study; of a protocol also its hyper-parameters in the catalogue."""
    return {*inspect.signature(function).parameters, *catalog("protocols").get(protocol.replace("-", "_"), ())} - _GIVEN


def profiles() -> list[str]:
    """Names of the profiles that ship with the package."""
    folder = resources.files("igsp") / "catalog" / "profiles"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def settings(profile: str = "quick", **overrides: Any) -> Settings:
    """Settings of a profile, by name or as a YAML file of one's own; overrides that are None leave its values.

    Raises:
        UnknownName: no such profile, setting, method, source, protocol or option.
        UsageError: no YAML mapping, or a value of the wrong type or out of range, naming file and key.
    """
    name, text = _profile_text(profile)
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{name} is no YAML: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{name} must be a mapping of settings")
    values |= {key: value for key, value in overrides.items() if value is not None}
    if "profile" in values:
        raise UnknownName("key", "profile", Settings.model_fields.keys() - {"profile"}, f"({name})")
    return checked(Settings, values | {"profile": Path(profile).stem}, name)


def _profile_text(profile: str) -> tuple[str, str]:
    """Name and content of a profile's file."""
    if profile.endswith((".yaml", ".yml")):
        try:
            return profile, Path(profile).read_text(encoding="utf8")
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the profile '{profile}': {getattr(error, 'strerror', error)}") from None
    if profile not in profiles():
        raise UnknownName("profile", profile, profiles(), "(or give a file, NAME.yaml)")
    name = f"catalog/profiles/{profile}.yaml"
    return name, (resources.files("igsp") / name).read_text(encoding="utf8")
