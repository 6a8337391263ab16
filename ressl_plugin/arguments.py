"""What the subcommands of `ressl` have in common."""

from __future__ import annotations

from pathlib import Path

from ressl_plugin.errors import UserError


def command(commands, name, call, **kwargs):
    """A subcommand that calls `call(args)`."""
    sub = commands.add_parser(name, **kwargs)
    sub.set_defaults(call=call)
    return sub


def with_config(sub):
    """Arguments that name a config and change it."""
    sub.add_argument("words", nargs="*", metavar="CONFIG|key=value",
                     help="a YAML file or a recipe such as digits/ressl, and Hydra overrides")
    sub.add_argument("--config-path", "-cp", help="folder of --config-name, as the host has it")
    sub.add_argument("--config-name", "-cn")
    sub.add_argument("--cfg", nargs="?", const="job", help="print the resolved config and stop")


def read_config(args):
    """(config's name or path, overrides) of the command line."""
    overrides = [w for w in args.words if "=" in w or w.startswith("~")]
    names = [w for w in args.words if w not in overrides]
    if args.config_name:
        names.append(str(Path(args.config_path or ".") / args.config_name))
    if len(names) != 1:
        from ressl_plugin import config

        known = ", ".join(config.recipes())
        raise UserError(
            f"one config is needed, got {names or 'none'}; a YAML file or one of {known}"
        )
    return names[0], overrides


def on_a_run(sub):
    """Arguments of an evaluator."""
    sub.add_argument("run", help="a run directory or a checkpoint in one")
    sub.add_argument("overrides", nargs="*", metavar="key=value",
                     help="other values than the run's own, such as data.val_path=DIR")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
