"""How long a training stands still for a checkpoint: written while it goes on, or waited for.

    python benchmarks/saving.py --pairs 9 --json saving.json

The CIFAR recipe's whole state (150 MB) in one training, in rounds of a few steps: without a save,
with one that is written meanwhile, with one that is waited for. A round lasts until the file is on
the disk, so that what the writer takes from the steps counts. A stall is what a round lasts longer
than its neighbour without a save; stall_ratio is the one's over the other's, held_ratio the same of
the call alone. Below 1 is better.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import common
import lightning.pytorch as pl
import training

from ressl_plugin.train.checkpoint_io import AtomicCheckpointIO

SIDES = ("none", "meanwhile", "waited for")


class Rounds(pl.Callback):
    """Rounds of `steps` steps after `warm` more, each with the save of its side at its beginning.

    Attributes:
        seconds: of every round.
        held: of them, those within the call of the save.
    """

    def __init__(self, path: Path, sides: list[str], steps: int, warm: int):
        self.path, self.sides, self.steps, self.warm = path, sides, steps, warm
        self.seconds, self.held = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Between two rounds."""
        done = trainer.global_step - self.warm
        if done < 0 or done % self.steps:
            return
        io = trainer.strategy.checkpoint_io
        if done:
            io.teardown()
            self.seconds.append(common.now() - self.start)
        if len(self.seconds) == len(self.sides):
            return
        self.start, side = common.now(), self.sides[len(self.seconds)]
        if side != "none":
            trainer.save_checkpoint(self.path, weights_only=False)
        if side == "waited for":
            io.teardown()
        self.held.append(common.now() - self.start)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the benchmark; returns its figures."""
    parser = common.arguments(__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--steps", type=int, default=8, help="steps a round")
    args = parser.parse_args(argv)
    common.begin(args, f"batch {args.batch}, {args.steps} steps a round, {args.threads} threads, "
                       f"{args.pairs} pairs")  # fmt: skip
    cfg = training.settings(overrides=[
        f"optimizer.batch_size={args.batch}", "batchnorm.groups=0", "knn_eval.enabled=false",
        "precision=32-true", "devices=1",
    ])  # fmt: skip
    order = [side for i in range(args.pairs) for side in SIDES[:: -1 if i % 2 else 1]]
    with tempfile.TemporaryDirectory() as folder:
        rounds = Rounds(Path(folder) / "last.ckpt", order, args.steps, warm=1)
        batches = training.Repeat(training.random_batch(args.batch, args.size))
        training.seconds_a_step(
            training.ours(cfg), batches, args.steps * len(order), rounds.warm, [rounds],
            plugins=[AtomicCheckpointIO()],
        )  # fmt: skip
        megabytes = rounds.path.stat().st_size / 1e6
    figures, rows = {}, []
    stall, held = stalls(order, rounds.seconds), rounds_of(order, rounds.held)
    for what, found in (("stall", stall), ("held", held)):
        ratios = [meanwhile / waited for _, meanwhile, waited in found]
        figures[f"{what}_ratio"] = statistics.median(ratios)
        middle = [1e3 * statistics.median(column) for column in zip(*found)]
        rows.append((what, *middle[1:], figures[f"{what}_ratio"],
                     f"{min(ratios):.2f}-{max(ratios):.2f}"))  # fmt: skip
    print(f"{megabytes:.0f} MB")
    common.table(rows, ("", "meanwhile, ms", "waited for, ms", "ratio", "range"))
    return common.finish(args, figures)


def rounds_of(order: list[str], seconds: list[float]) -> list[tuple[float, ...]]:
    """One (none, meanwhile, waited for) a pair."""
    found = list(zip(order, seconds))
    groups = [dict(found[i : i + len(SIDES)]) for i in range(0, len(found), len(SIDES))]
    return [tuple(group[side] for side in SIDES) for group in groups]


def stalls(order: list[str], seconds: list[float]) -> list[tuple[float, ...]]:
    """The same, less what the round without a save took."""
    return [tuple(one - group[0] for one in group) for group in rounds_of(order, seconds)]


if __name__ == "__main__":
    main()
