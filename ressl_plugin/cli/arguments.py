"""What the subcommands of `ressl` have in common."""

from __future__ import annotations

import argparse
import importlib
import os
import re
from pathlib import Path

from ressl_plugin.evaluate import declared
from ressl_plugin.utils.errors import UserError

_WITHOUT = ("table", "data", "export")  # commands that take no overrides
_TYPES = {"int": int, "float": float, "Path": Path}  # that an evaluator's arguments may name
_OVERRIDE = re.compile(r"[+]{0,2}[A-Za-z_][\w./@:]*=|~[A-Za-z_][\w./@:]*(=|$)")


def split_argv(argv: list[str]) -> tuple[list[str], list[str]]:
    """(the other words, the overrides) of a command line: overrides may stand anywhere in it.

    argparse fills a list of positional words once, and lists of an option's values with what
    follows; so `pretrain X -m seed=1,2` would be refused and `--data cifar10 max_epochs=1` taken
    for two data sets.
    """
    if not argv or argv[0] in _WITHOUT:
        return list(argv), []
    arguments = [argument for one in declared() for argument in one["arguments"].items()]
    files = {name for name, how in arguments if how.get("type") == "Path"}
    places = {"--out", *(name for name in files if name.startswith("--"))}
    apart, flag = ([], []), ""
    for before, word in zip(["", *argv], argv):
        flag = word if word.startswith("--") else flag
        cell = flag == "--cells" and "/" in word.split("=")[0]  # recipe/lr=0.1
        given = before in places or cell
        apart[not given and _is_override(word, argv[0])].append(word)
    return apart


def _is_override(word: str, command: str) -> bool:
    """key=value, +key=value or ~key in Hydra's grammar, and no file that is there.

    Sweeps make directories named seed=1: `pretrain runs/seed=1/config.yaml` names a config.
    """
    if not _OVERRIDE.match(word) or os.path.isfile(word):
        return False
    in_a_folder = "/" in word.split("=")[0]
    if in_a_folder and os.path.isfile(f"{word}.yaml"):  # as config.find reads it
        return False
    # of the user's files, maybe solo-learn's "name-id-ep=999.ckpt"
    on_files = ("import", "report", *(evaluator["name"] for evaluator in declared()))
    return command not in on_files or not (in_a_folder or os.path.exists(word))


class WithDefaults(argparse.HelpFormatter):
    """Help texts end with the default, where there is one and they do not tell it themselves."""

    def _get_help_string(self, action):
        text, default = action.help, action.default
        told = "default" in text or not action.option_strings
        if told or default in (None, False, argparse.SUPPRESS):
            return text
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else default
        return f"{text} (default: {shown})"


def command(commands, name, call, **kwargs):
    """A subcommand that calls `call(args)`."""
    sub = commands.add_parser(name, formatter_class=WithDefaults, **kwargs)
    sub.set_defaults(call=call)
    return sub


def with_config(sub, run: str = "", printed: bool = False):
    """Arguments that name a config (or, with `run` as its help says, a run) and change it.

    printed: the subcommand can print what they come to.
    """
    sub.add_argument(
        "words",
        nargs="*",
        metavar="RUN|CONFIG|key=value" if run else "CONFIG|key=value",
        help=f"{run}a YAML file or a recipe such as digits/ressl, and Hydra overrides",
    )
    if printed:
        sub.add_argument("--cfg", action="store_true", help="print the resolved config and stop")


def target_of(args):
    """(config's name or path, overrides) of the command line."""
    if len(args.words) != 1:
        from ressl_plugin import config

        known = ", ".join(config.recipes())
        raise UserError(
            f"one config is needed, got {args.words or 'none'}; a YAML file or one of {known}"
        )
    return args.words[0], args.overrides


def evaluator(commands, declared: dict):
    """The subcommand of an evaluator, as its file declares it."""

    def call(args):
        evaluate = importlib.import_module(declared["module"]).evaluate
        target, overrides = target_of(args) if recipes else (args.run, args.overrides)
        if args.best:
            from ressl_plugin import config
            from ressl_plugin.evaluate.recipes import resolve
            from ressl_plugin.run import directories

            run, recipe = resolve(target, overrides) if recipes else (target, None)
            best = directories.best(run)
            if recipe is None:
                target = best
            else:
                where = config.quoted("pretrained_feature_extractor", best)
                overrides = [*overrides, where]
        evaluate(target, overrides, **{name: getattr(args, name) for name in names})

    recipes = declared.get("recipes")
    sub = command(commands, declared["name"], call, help=declared["help"])
    if recipes:
        with_config(sub, recipes, printed=True)
    else:
        sub.add_argument("run", help="a run directory or a checkpoint in one")
    for flag, how in declared["arguments"].items():
        typed = {"type": _TYPES[how["type"]]} if "type" in how else {}
        sub.add_argument(flag, **{**how, **typed})
    if not recipes:
        sub.add_argument(
            "overrides",
            nargs="*",
            metavar="key=value",
            help="other values than the run's own, such as data.val_path=DIR",
        )
    sub.add_argument("--best", action="store_true", help="of RUN/best.ckpt (checkpoint.best)")
    sub.add_argument("--device", help="auto, cpu, cuda, cuda:1")
    sub.set_defaults(**declared["defaults"])
    words = (flag.lstrip("-").replace("-", "_") for flag in declared["arguments"])
    names = {*words, *declared["defaults"]}
