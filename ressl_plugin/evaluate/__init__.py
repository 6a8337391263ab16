"""Evaluators of frozen or tuned features, and what they share.

An evaluator is a file with `COMMAND`, what `ressl` is told of it, and a function
`evaluate(path, overrides, ...)` whose further arguments are the subcommand's, defaults included.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

# a whole file takes ten times as long to parse as these two statements, to the next one's start
_STATEMENTS = re.compile(r"^(?:COMMAND = \{|def evaluate\().*?(?=^[^\s)}]|\Z)", re.M | re.S)


def declared() -> list[dict]:
    """Of each evaluator its `COMMAND`, its `module` and the `defaults` of its `evaluate`.

    Literals, read without running the file: `ressl --help` need not wait for PyTorch.
    """
    return _declared(tuple(__path__))


@cache
def _declared(folders: tuple[str, ...]) -> list[dict]:
    files = (file for folder in folders for file in sorted(Path(folder).glob("*.py")))
    texts = {file.stem: file.read_text("utf-8") for file in files}
    found = [_read(name, text) for name, text in texts.items() if "\nCOMMAND = {" in text]
    return sorted(found, key=lambda command: command["name"])


def _read(module: str, text: str) -> dict:
    command, evaluate = ast.parse("".join(_STATEMENTS.findall(text))).body
    values = [ast.literal_eval(value) for value in evaluate.args.defaults]
    names = [argument.arg for argument in evaluate.args.args][-len(values) :]
    return {
        **ast.literal_eval(command.value),
        "module": f"{__name__}.{module}",
        "defaults": dict(zip(names, values)),
    }
