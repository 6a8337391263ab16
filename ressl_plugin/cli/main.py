"""The `ressl` command. Nothing but argument handling: each subcommand calls one function."""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from pathlib import Path

from ressl_plugin import __version__
from ressl_plugin.cli import arguments
from ressl_plugin.cli.arguments import command, evaluator, target_of, with_config
from ressl_plugin.evaluate import declared
from ressl_plugin.utils import pipes, render
from ressl_plugin.utils.errors import OF_THE_MACHINE, RankLost, RunFault, UserError, own_words

USER_MISTAKE, FAULT, INTERRUPTED = 2, RunFault.status, 130


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand.

    Exit status: 0; 2, the user's mistake; 3, a fault of the run (loss not finite, a worker killed,
    a file gone); stopped with everything saved: 130 by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP, 75 by
    SIGUSR1 (the cluster wants the machine back; start again with resume=true). 75, too, where
    another of the run's processes is gone, or a step did not end. A bug: a traceback and 1.
    """
    pipes.outlive_readers()
    if hasattr(sys.stdout, "reconfigure"):  # not where a notebook has put its own
        sys.stdout.reconfigure(errors="backslashreplace")  # letters that it cannot show
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("lightning", "hydra", "matplotlib", "fsspec", "absl", "onnxscript", "onnx_ir"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    words, overrides = arguments.split_argv(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(words)
    args.overrides = [*getattr(args, "overrides", []), *overrides]
    return guarded(lambda: _called(args))


def _called(args):
    from ressl_plugin.utils.launch import launched_first

    if not launched_first():  # one process speaks for all, errors excepted
        logging.getLogger().setLevel(logging.ERROR)
    return args.call(args)


def guarded(call) -> int:
    """The exit status of `call()`; what is known to go wrong is one line on standard error."""
    try:
        found = call()
        return found if isinstance(found, int) else 0
    except UserError as error:
        print(f"ressl: error: {own_words(error)}", file=sys.stderr)
        return USER_MISTAKE
    except RunFault as error:
        print(f"ressl: {error}", file=sys.stderr)
        if isinstance(error, RankLost):  # what tidies up may wait for it
            from ressl_plugin.train.watchdog import leave

            leave(error.status)
        return error.status
    except KeyboardInterrupt:
        print("ressl: interrupted", file=sys.stderr)
        return INTERRUPTED
    except OF_THE_MACHINE as error:
        from ressl_plugin.train.faults import explain

        known = explain(error)
        if known is None:
            raise
        print(f"ressl: {known}", file=sys.stderr)
        return FAULT


def parser() -> argparse.ArgumentParser:
    """All subcommands and their arguments."""
    top = argparse.ArgumentParser(
        "ressl", description="ReSSL for solo-learn: pre-train, evaluate, compare."
    )
    top.add_argument("--version", action="version", version=f"ressl_plugin {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    evaluators = [partial(evaluator, declared=one) for one in declared()]
    experiments = (_table, _paper, _benchmark, _report)
    for add in (_pretrain, *evaluators, *experiments, _views, _data, _import, _export):
        add(commands)
    return top


def _pretrain(commands):
    def call(args):
        from ressl_plugin import config
        from ressl_plugin.experiments import sweep

        target, overrides = target_of(args)
        if args.multirun and not args.cfg:
            return sweep.multirun(target, overrides)
        cfg = config.finish(config.load(target, overrides))
        if args.cfg:
            from omegaconf import OmegaConf

            print(OmegaConf.to_yaml(cfg), end="")
            return
        from ressl_plugin.train.pretrain import pretrain
        from ressl_plugin.utils.launch import launched_first

        folder = pretrain(cfg, meter=args.meter)
        if launched_first():
            print(f"run: {folder}")

    sub = command(commands, "pretrain", call, help="pre-train a method into a run directory")
    with_config(sub, printed=True)
    sub.add_argument("--multirun", "-m", action="store_true", help="a=1,2 b=3,4: every combination")
    sub.add_argument("--meter", action="store_true", help="images/s, peak memory to results.json")


def _table(commands):
    def call(args):
        from ressl_plugin.experiments import paper_table, tables

        if args.paper:
            print(paper_table.paper_table(args.paper, args.runs, args.format))
        else:
            print(tables.table(args.runs, args.format))

    sub = command(commands, "table", call, help="runs side by side with the paper's numbers")
    sub.add_argument("runs", nargs="+", type=Path)
    sub.add_argument(
        "--paper", type=int, choices=range(1, 11), metavar="1-10", help="as this table of the paper"
    )
    sub.add_argument(
        "--format", choices=render.FORMATS, default="markdown", help="of what is printed"
    )


def _paper(commands):
    def call(args):
        from ressl_plugin.experiments import paper

        paper.reproduce(args.name, args.overrides, args.out, args.data, args.fast, args.voc,
                        args.device, args.labels, args.cells, args.plan)  # fmt: skip

    sub = command(commands, "paper", call, help="a table or figure of the paper, run and printed")
    sub.add_argument("name", help="table1 ... table10, figure2, figure3, or a YAML file")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="for every cell")
    sub.add_argument("--data", nargs="+", metavar="NAME", help="only these data sets")
    sub.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder of the runs")
    sub.add_argument("--fast", action="store_true", help="linear: on features extracted once")
    sub.add_argument("--voc", type=Path, help="VOCdevkit folder, for Table 9")
    sub.add_argument("--labels", nargs="+", help="for Table 10: shares, or lists of image names")
    sub.add_argument("--cells", nargs="+", help="only these, as --plan names them")
    sub.add_argument("--plan", action="store_true", help="list cells and commands, run nothing")
    sub.add_argument("--device", default="auto", help="of the evaluators: auto, cpu, cuda, cuda:1")


def _report(commands):
    def call(args):
        from ressl_plugin.experiments.report import report

        print(report(args.runs, args.out, args.overrides, args.device))

    sub = command(commands, "report", call, help="runs as one HTML page to pass on")
    sub.add_argument("runs", nargs="+", type=Path)
    sub.add_argument("--out", type=Path, default=Path("report.html"), help="page to make")
    sub.add_argument("--device", default="auto", help="for the pictures: auto, cpu, cuda, cuda:1")


def _benchmark(commands):
    def call(args):
        from ressl_plugin.experiments import benchmark

        target, overrides = target_of(args)
        benchmark.benchmark(target, overrides, args.methods, args.seeds, args.out,
                            args.settings, tuple(args.labels))  # fmt: skip

    sub = command(commands, "benchmark", call, help="several methods on the same data and budget")
    with_config(sub)
    sub.add_argument("--methods", nargs="+", help="default: all seven")
    sub.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="a run for each")
    sub.add_argument("--labels", type=int, nargs="+", default=[1, 5], help="a class")
    sub.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="what methods have of their own: rates, epochs, recipes, as in methods.yaml",
    )
    sub.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder of the runs")


def _views(commands):
    def call(args):
        from ressl_plugin.evaluate import contact_sheet

        target, overrides = target_of(args)
        print(contact_sheet.write(target, overrides, args.out, args.images, args.backend))

    sub = command(commands, "views", call, help="a picture of a few images and their views")
    with_config(sub)
    sub.add_argument("--out", type=Path, default=Path("views.png"), help="picture to make")
    sub.add_argument("--images", type=int, default=6, help="so many of the data set")
    backends = ("host", "dali", "batched")
    sub.add_argument("--backend", choices=backends, default="batched", help="who draws the views")


def _data(commands):
    def call(args):
        from ressl_plugin import data

        if args.what == "check":
            report = data.check_folder(args.folder, labels=not args.no_labels)
            print("\n".join(report.lines()))
            report.refuse()
        elif args.what == "digits":
            print(data.make_digits(args.folder))
        elif args.what in data.PACKED:
            if args.source is None:
                raise UserError(f"ressl data {args.what}: --from SOURCE is needed, see --help")
            print(data.pack(args.what, args.source, args.folder, args.hold_out))
        else:
            print(data.arrange_tiny_imagenet(args.folder))

    sub = command(commands, "data", call, help="make, arrange or check images")
    sub.add_argument("what", choices=("digits", "check", "tiny-imagenet", "cifar10", "cifar100"))
    sub.add_argument("folder", type=Path, help="folder; cifar10, cifar100: the .npz to write")
    sub.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="SOURCE",
        help="cifar10, cifar100: archive, torchvision's folder, or one with train/ and test/",
    )
    sub.add_argument(
        "--hold-out",
        type=int,
        default=0,
        metavar="N",
        help="cifar10, cifar100: N of the training images in the place of the test images",
    )
    sub.add_argument(
        "--no-labels", action="store_true", help="check: images without labels, nested or not"
    )


def _import(commands):
    def call(args):
        from ressl_plugin.train import exchange

        print(exchange.import_run(args.checkpoint, *target_of(args), out=args.out))

    sub = command(commands, "import", call, help="another code's checkpoint into a run directory")
    sub.add_argument("checkpoint", type=Path)
    with_config(sub)
    sub.add_argument("--out", type=Path, required=True, help="run directory to make")


def _export(commands):
    def call(args):
        from ressl_plugin.experiments import model_card
        from ressl_plugin.run import directories

        run = directories.best(args.run) if args.best else args.run
        print(model_card.export_run(run, args.out, args.licence, args.onnx))

    sub = command(commands, "export", call, help="the backbone as a folder for timm and for hubs")
    sub.add_argument("run")
    sub.add_argument("out", type=Path, help="a new folder")
    sub.add_argument("--licence", help="of the weights, such as cc-by-4.0, for the model card")
    sub.add_argument("--onnx", action="store_true", help="model.onnx, too")
    sub.add_argument("--best", action="store_true", help="of RUN/best.ckpt (checkpoint.best)")
