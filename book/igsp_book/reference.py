"""The directive that prints what the command line offers."""

from __future__ import annotations

from docutils import nodes

from igsp_book.base import BookDirective
from igsp_book.tables import code

HELP_WIDTH = 78  # characters; the same whatever terminal the build runs in


class CliReference(BookDirective):
    """Each command of the `igsp` program with its options, as the program prints them."""

    def build(self) -> list[nodes.Node]:
        import typer

        from igsp.cli import HELP_OPTIONS, leaves

        result: list[nodes.Node] = []
        for name, command in leaves():
            section = nodes.section("", nodes.title("", "", code(name)), ids=[f"command-{name.replace(' ', '-')}"])
            context = typer.Context(command, info_name=name, terminal_width=HELP_WIDTH, help_option_names=HELP_OPTIONS)
            section += nodes.literal_block("", command.get_help(context).rstrip(), language="none")
            result.append(section)
        return result
