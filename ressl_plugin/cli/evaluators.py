"""Subcommands that evaluate a run: linear, knn, compare, lowshot, finetune, features,
figures."""

from __future__ import annotations

from pathlib import Path

from ressl_plugin.cli.arguments import command, on_a_run, read_config, with_config


def linear(commands):
    """Add `ressl linear`."""

    def call(args):
        from ressl_plugin.evaluate import on_run

        target, overrides = read_config(args)
        on_run.linear(target, overrides, args.protocol, args.fast, args.device, bool(args.cfg))

    sub = command(commands, "linear", call, help="linear classifier on the frozen backbone")
    with_config(sub, "a run directory or a checkpoint in one (with --protocol or --fast); or "
                "a linear recipe that names its run: ")
    sub.add_argument("--protocol", choices=("small", "imagenet"),
                     help="the paper's for small images or ImageNet; default: by crop size")
    sub.add_argument("--fast", action="store_true",
                     help="on features extracted once: logistic regression at its optimum, or the "
                          "--protocol that is named")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")


def knn(commands):
    """Add `ressl knn`."""

    def call(args):
        from ressl_plugin.evaluate import on_run

        on_run.knn(args.run, args.overrides, args.k, args.temperature, args.distance, args.device)

    sub = command(commands, "knn", call, help="weighted kNN on features of clean images")
    on_a_run(sub)
    sub.add_argument("--k", type=int, nargs="+", help="neighbours; default: 1 5 10 20 50 100 200")
    sub.add_argument("--temperature", type=float, nargs="+",
                     help="T of a neighbour's weight exp(cosine / T); default: 0.02 0.05 0.07 0.1 "
                          "0.2 0.5 1.0")
    sub.add_argument("--distance", choices=("cosine", "euclidean"), default="cosine",
                     help="by which neighbours are near")


def compare(commands):
    """Add `ressl compare`."""

    def call(args):
        from ressl_plugin.evaluate import on_run

        on_run.compare(args.run, args.overrides, args.draws, args.device)

    sub = command(
        commands,
        "compare",
        call,
        help="the run's features beside the untrained backbone's and raw pixels",
    )
    on_a_run(sub)
    sub.add_argument("--draws", type=int, default=10, help="draws of the labelled images")


def lowshot(commands):
    """Add `ressl lowshot`."""

    def call(args):
        from ressl_plugin.evaluate import on_run

        on_run.lowshot(
            args.run,
            args.overrides,
            args.voc,
            args.per_class,
            args.draws,
            args.device,
            args.protocol,
        )

    sub = command(commands, "lowshot", call, help="linear SVMs on few labels (Table 9)")
    on_a_run(sub)
    sub.add_argument("--voc", type=Path, help="VOCdevkit folder; default: the run's own data")
    sub.add_argument("--per-class", nargs="+", default=["16", "32", "64", "full"],
                     help="labelled images of a class")
    sub.add_argument("--draws", type=int, default=5, help="draws of the labelled images")
    sub.add_argument(
        "--protocol",
        choices=("pcl", "goyal"),
        default="pcl",
        help="of VOC07: as PCL's code, which the paper follows, or its forerunner's",
    )


def finetune(commands):
    """Add `ressl finetune`."""

    def call(args):
        from ressl_plugin.evaluate import on_run

        on_run.finetune(
            args.run,
            args.overrides,
            args.labels,
            args.epochs,
            args.lr_backbone,
            args.lr_head,
            args.device,
        )

    sub = command(commands, "finetune", call, help="the whole network on few labels (Table 10)")
    on_a_run(sub)
    sub.add_argument("--labels", default="0.01", help="a fraction, or a file of image names")
    sub.add_argument("--epochs", type=int, default=20, help="of training")
    usual = "default: SwAV's, by the share of the labels"
    sub.add_argument("--lr-backbone", type=float, help=usual)
    sub.add_argument("--lr-head", type=float, help=usual)


def features(commands):
    """Add `ressl features`."""

    def call(args):
        from ressl_plugin.evaluate import save_features

        save_features.save(args.run, args.out, args.overrides, args.device)

    sub = command(commands, "features", call, help="features of clean images into a .npz")
    on_a_run(sub, out="the .npz to write")


def figures(commands):
    """Add `ressl figures`."""

    def call(args):
        from ressl_plugin.evaluate import on_run

        on_run.figures(args.run, args.overrides, args.device)

    on_a_run(command(commands, "figures", call, help="curves, feature space, neighbours"))


COMMANDS = (linear, knn, compare, lowshot, finetune, features, figures)
