"""Typed errors. Each one names the thing that is wrong and the way out.

`UsageError` means that the caller asked for something impossible (exit code 2 on the command line);
every other `IgspError` means that the work itself failed (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IgspError(Exception):
    """The work failed. Base class of every error this package raises on purpose."""

    exit_code = 1


class UsageError(IgspError, ValueError):
    """The caller asked for something that cannot be done as stated."""

    exit_code = 2


class UnknownName(UsageError):
    """A name (source, model, method, task, ...) that is not known; the nearest known ones are listed."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
        tail = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} '{name}': {tail}{' ' + hint if hint else ''}")
        self.kind, self.name, self.near = kind, name, near


class NotEnoughText(UsageError):
    """A source that yields fewer windows than were asked for."""

    def __init__(self, source: str, windows: int, wanted: int, seqlen: int) -> None:
        super().__init__(
            f"source '{source}' yields {windows} windows of {seqlen} tokens, {wanted} were asked for: "
            f"lower n to {windows} or use a shorter seqlen"
        )
        self.windows, self.wanted = windows, wanted


class TokenizerMismatch(UsageError):
    """A calibration set that was cut with another tokenizer than the model's."""


class AssetError(IgspError):
    """A pinned file that is missing and cannot be fetched, or whose content is not the pinned one."""


class NumericalError(IgspError):
    """Non-finite activations, or a Hessian that stays singular after the whole damping ladder."""
