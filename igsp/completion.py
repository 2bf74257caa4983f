"""Shell completion of the `igsp` command, written out from its argument parser."""

from __future__ import annotations

import argparse

from igsp.errors import UnknownName

SHELLS = ("bash", "zsh", "fish")


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """A script for `eval "$(igsp completion bash)"` (bash, zsh) or `igsp completion fish | source`.

    Raises:
        UnknownName: no such shell.
    """
    if shell not in SHELLS:
        raise UnknownName("shell", shell, SHELLS)
    words = _words(parser)
    if shell == "fish":
        return "\n".join(_fish(words)) + "\n"
    cases = "\n".join(f'    "{path}") words="{" ".join(names)}" ;;' for path, names in words.items())
    head = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n" if shell == "zsh" else ""
    return head + f"""_igsp() {{
  local word path="" words="" current="${{COMP_WORDS[COMP_CWORD]}}"
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    [[ $word == -* ]] && break
    path="${{path:+$path }}$word"
  done
  case "$path" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _igsp igsp
"""


def _words(parser: argparse.ArgumentParser, path: str = "") -> dict[str, list[str]]:
    """What may follow each command: its own commands and long options, by the command's path (`study run`)."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    options = [o for action in parser._actions for o in action.option_strings if o.startswith("--")]
    found = {path: [*(name for group in groups for name in group.choices), *options]}
    for group in groups:
        for name, child in group.choices.items():
            found |= _words(child, f"{path} {name}".strip())
    return found


def _fish(words: dict[str, list[str]]) -> list[str]:
    lines = ["complete -c igsp -n __fish_use_subcommand -f"]
    for path, names in words.items():
        seen = "".join(f"; and __fish_seen_subcommand_from {word}" for word in path.split())
        condition = f"'true{seen}'" if path else "__fish_use_subcommand"
        for name in names:
            what = f"-l {name[2:]}" if name.startswith("--") else f"-a {name}"
            lines.append(f"complete -c igsp -n {condition} {what}")
    return lines
