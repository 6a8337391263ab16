"""A training step of the plugin's ReSSL beside the host's own, in one process, taking turns.

    [SOLO_LEARN=<checkout>] python benchmarks/step.py --pairs 9 --json step.json

All take the same batch. The host's and ours go through Lightning's Trainer: forward, loss,
backward, SGD, learning rate, EMA, queue, metrics. The host's is as shipped, stem included; ours has
the host's stem in one row and the paper's in the other, in float32 as the host's, and in a third
row (time_ratio_default) the paper's and the precision of `precision: auto`, each side as it comes.
Where that is bfloat16, the host's is timed in it, too (time_ratio_bf16: ours over that one).
Algorithm 1 in plain PyTorch (training.Plain) has the paper's stem; time_ratio_plain is ours over
it. outside_network_share is measured within our own steps: what is not a network's forward or
backward pass (drawing both views on the device, loss, queue, EMA, optimizer, online classifier,
metrics, Lightning's loop) over the whole. Below 1 is better.
"""

from __future__ import annotations

import statistics

import common
import torch
import training

from ressl_plugin.utils import precision

# key -> side, bar
RATIOS = {
    "time_ratio_host_stem": ("ours, host's stem", 0.70),
    "time_ratio_paper_stem": ("ours, paper's stem", 0.50),
    "time_ratio_default": ("ours, as it comes", 0.28),
}
BF16_BAR = 0.55


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the benchmark; returns its figures."""
    parser = common.arguments(__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--queue", type=int, default=4096)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--steps", type=int, default=3, help="steps a run, after one more")
    args = parser.parse_args(argv)
    common.begin(args, f"batch {args.batch}, {args.size}x{args.size}, K {args.queue}, "
                       f"{args.backbone}, {args.threads} threads, {args.pairs} pairs")  # fmt: skip

    cfg = training.settings(overrides=[
        f"optimizer.batch_size={args.batch}", f"method_kwargs.queue_size={args.queue}",
        f"backbone.name={args.backbone}", "batchnorm.groups=0", "knn_eval.enabled=false",
        "precision=32-true", "devices=1",
    ])  # fmt: skip
    torch.manual_seed(0)
    models = {
        "host": training.hosts(cfg),
        "ours, host's stem": training.ours(cfg, backbone__stem="solo"),
        "ours, paper's stem": training.ours(cfg, backbone__stem="paper"),
    }
    batches = training.Repeat(training.random_batch(args.batch, args.size))
    sides = {name: _side(model, batches, args.steps) for name, model in models.items()}
    auto = precision.fastest(torch.cuda.is_available())
    model = training.ours(cfg, backbone__stem="paper", precision=auto)
    sides["ours, as it comes"] = _side(model, batches, args.steps, precision=auto)
    in_bf16 = auto != "32-true"
    if in_bf16:
        sides["host, bf16"] = _side(training.hosts(cfg), batches, args.steps, precision=auto)
    plain = training.Plain(cfg)
    sides["plain"] = lambda: plain.seconds_a_step(batches.batch, args.steps)
    runs = common.alternate(sides, args.pairs)
    share = [
        outside(models["ours, paper's stem"], cfg, args.size, args.steps) for _ in range(args.pairs)
    ]

    rows, figures = [], {"time_ratio_plain": common.ratio(runs, "ours, paper's stem", "plain")[0]}
    for key, (side, bar) in RATIOS.items():
        middle, low, high = common.ratio(runs, side, "host")
        figures[key] = middle
        said = f"{side} ({auto})" if key == "time_ratio_default" else side
        rows.append((said, common.middle(runs, side) * 1e3, middle, f"{low:.3f}-{high:.3f}",
                     f"<= {bar:.2f}"))  # fmt: skip
    if in_bf16:
        middle, low, high = common.ratio(runs, "ours, as it comes", "host, bf16")
        figures["time_ratio_bf16"] = middle
        rows.append((f"the same, the host's in {auto}, too", "", middle, f"{low:.3f}-{high:.3f}",
                     f"<= {BF16_BAR:.2f}"))  # fmt: skip
    figures["outside_network_share"] = statistics.median(share)
    rows.append(("outside the networks", "", figures["outside_network_share"],
                 f"{min(share):.3f}-{max(share):.3f}", "<= 0.12"))  # fmt: skip
    rows.insert(0, (f"host's own ({training.host.GENERATION})", common.middle(runs, "host") * 1e3,
                    1.0, "", ""))  # fmt: skip
    rows.insert(1, ("Algorithm 1, plain PyTorch", common.middle(runs, "plain") * 1e3,
                    common.ratio(runs, "plain", "host")[0], "", ""))  # fmt: skip
    if in_bf16:
        rows.insert(1, (f"the same, {auto}", common.middle(runs, "host, bf16") * 1e3,
                        common.ratio(runs, "host, bf16", "host")[0], "", ""))  # fmt: skip
    common.table(rows, ("", "ms a step", "ratio", "range", "bar"))
    return common.finish(args, figures)


def _side(model, batches, steps, **trainer):
    return lambda: training.seconds_a_step(model, batches, steps, **trainer)


def outside(model, cfg, size: int, steps: int) -> float:
    """Share of a step, its views drawn by the batched back end, that no network accounts for."""
    from ressl_plugin.train.profile import NETWORKS, Phases

    phases = Phases(warm=1, steps=steps)
    loader = training.random_images(cfg, size, cfg.optimizer.batch_size * (steps + 1))
    training.seconds_a_step(model, loader, steps, callbacks=[phases])
    seconds = phases.seconds()
    return 1 - sum(seconds[name] for name in NETWORKS) / sum(seconds.values())


if __name__ == "__main__":
    main()
