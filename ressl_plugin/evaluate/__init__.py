"""Evaluators, one a file, and what they share.

An evaluator is a file with `COMMAND`, what `ressl` is told of it, and a function
`evaluate(path, overrides, ...)` whose further arguments are the subcommand's, defaults included:
nothing else is to be changed for another one (an example is in CONTRIBUTING.md). `subject` has the
run, its images' features and its records, `features` the extraction.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


def declared() -> list[dict]:
    """Of each evaluator its `COMMAND`, its `module` and the `defaults` of its `evaluate`.

    Literals, read without running the file: `ressl --help` need not wait for PyTorch.
    """
    return _declared(tuple(__path__))


@cache
def _declared(folders: tuple[str, ...]) -> list[dict]:
    files = [file for folder in folders for file in Path(folder).glob("*.py")]
    texts = {file.stem: file.read_text("utf-8") for file in files}
    found = [_read(name, text) for name, text in texts.items() if "\nCOMMAND = {" in text]
    return sorted(found, key=lambda command: command["name"])


def _read(module: str, text: str) -> dict:
    statements = {}
    for one in ast.parse(text).body:
        name = ast.unparse(one.targets[0]) if isinstance(one, ast.Assign) else None
        statements[getattr(one, "name", name)] = one
    command, arguments = statements["COMMAND"].value, statements["evaluate"].args
    values = [ast.literal_eval(value) for value in arguments.defaults]
    names = [argument.arg for argument in arguments.args][-len(values) :]
    return {
        **ast.literal_eval(command),
        "module": f"{__name__}.{module}",
        "defaults": dict(zip(names, values)),
    }
