"""The `igsp` command. Exit codes: 0 done, 1 the work failed, 2 wrong usage or input."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.completion import completion_init, get_completion_script

from igsp import __version__
from igsp.cli import model, study, text
from igsp.cli.common import command
from igsp.errors import IgspError, UnknownName, UsageError

# Heavy imports (torch, transformers) happen inside the commands: `igsp --help` answers at once.

BOOK = {"notebooks": "run, pair and check the notebooks", "book": "the static book",
        "course": "exercises, and the packs for a class", "check": "check your solution of an exercise"}
SHELLS = ("bash", "zsh", "fish")
HELP_OPTIONS = ["-h", "--help"]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = _pairs_joined(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a scheduler sends ends like Ctrl-C
    completion_init()
    typed = [*words, *os.environ.get("COMP_WORDS", "").split(), *os.environ.get("_TYPER_COMPLETE_ARGS", "").split()]
    try:
        return application(typed)(words, prog_name="igsp", standalone_mode=False) or 0
    except (IgspError, typer.TyperException) as error:
        message, code = str(error), error.exit_code
        if isinstance(error, typer.TyperException):
            where = getattr(error, "ctx", None)
            message = error.format_message() + (f" See `{where.command_path} --help`." if where else "")
    except RecursionError:
        message, code = "the input is nested too deeply to be read", 1
    except (OSError, UnicodeError) as error:  # a full disk, a folder without permission, a file that is not UTF-8
        message, code = str(error), 1
    print(f"igsp: {message}", file=sys.stderr)
    return code


def application(words: Sequence[str] = tuple(BOOK)) -> typer.Typer:
    """All commands. Those of the book are loaded if one of `words` names them, since Sphinx takes its time."""
    app = typer.Typer(
        help=__doc__, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
        context_settings={"help_option_names": HELP_OPTIONS},
    )
    app.callback()(_version)
    shell = typer.Typer()
    command(shell, 'eval "$(igsp completion bash)"', "igsp completion fish | source")(completion)
    for part in (text.app, model.app, study.app, _book(words), shell):
        app.add_typer(part)
    return app


def _book(words: Sequence[str]) -> typer.Typer:
    if not BOOK.keys() & set(words):
        listed = typer.Typer()
        for name, about in BOOK.items():
            listed.command(name, help=about)(_version)  # what `igsp --help` shows
        return listed
    if not find_spec("igsp_book"):
        raise UsageError("the package igsp_book is not installed: install igsp from a clone of its repository")
    from igsp_book.commands import app

    return app


def leaves(group: Any = None, path: str = "igsp") -> Iterator[tuple[str, Any]]:
    """Every command in its order, by full name (`igsp study run`)."""
    group = typer.main.get_command(application()) if group is None else group
    for name, child in group.commands.items():
        yield from leaves(child, f"{path} {name}") if hasattr(child, "commands") else [(f"{path} {name}", child)]


def completion(shell: Annotated[str, typer.Argument(help="bash, zsh or fish")]) -> None:
    """print a script that completes commands and options in your shell"""
    if shell not in SHELLS:
        raise UnknownName("shell", shell, SHELLS)
    if shell == "zsh":
        print("autoload -U +X compinit && compinit")
    print(get_completion_script(prog_name="igsp", complete_var="_IGSP_COMPLETE", shell=shell))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"igsp {__version__}")
        raise typer.Exit


def _version(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version,
                                          help="print the version")] = False,
) -> None:
    pass


def _pairs_joined(words: Sequence[str]) -> list[str]:
    """`-p NAME VALUE` as one word, `-p NAME=VALUE`, which is how the parser takes an option that may be repeated.

    >>> _pairs_joined(["study", "run", "-p", "n", "4", "--quiet"])
    ['study', 'run', '-p', 'n=4', '--quiet']
    """
    joined, rest = [], iter(words)
    for word in rest:
        joined.append(word)
        if word in ("-p", "--parameter") and (name := next(rest, None)) is not None:
            value = None if "=" in name else next(rest, None)
            joined.append(name if value is None else f"{name}={value}")
    return joined
