"""`ressl paper`, `ressl benchmark`, `ressl report`: arguments of the commands on many runs."""

from __future__ import annotations

from pathlib import Path

from ressl_plugin.cli.arguments import command, read_config, with_config


def paper(commands):
    """Add `ressl paper`."""

    def call(args):
        from ressl_plugin.experiments import paper as reproduce

        reproduce.reproduce(args.name, args.overrides, args.out, args.data, args.fast, args.voc,
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


def report(commands):
    """Add `ressl report`."""

    def call(args):
        from ressl_plugin.experiments.report import report

        print(report(args.runs, args.out, args.overrides, args.device))

    sub = command(commands, "report", call, help="runs as one HTML page to pass on")
    sub.add_argument("runs", nargs="+", type=Path)
    sub.add_argument("--out", type=Path, default=Path("report.html"), help="page to make")
    sub.add_argument("--device", default="auto", help="for the pictures: auto, cpu, cuda, cuda:1")


def benchmark(commands):
    """Add `ressl benchmark`."""

    def call(args):
        from ressl_plugin.experiments import benchmark

        target, overrides = read_config(args)
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
