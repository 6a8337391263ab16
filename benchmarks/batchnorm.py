"""Time of batch norm over groups beside plain batch norm, a loop of chunks and one folded call.

    python benchmarks/batchnorm.py --pairs 15 --json batchnorm.json [--device cuda] [--compile]

Forward and gradient of the layers of a ResNet-18 on 32x32 images with the paper's stem. `ours` is
what a run uses there: kernels of its own on a GPU, PyTorch's for each group on a CPU. The four
alternate in one process; ratios are medians over the pairs, of time / plain batch norm's time.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ressl_plugin.method import batchnorm
from ressl_plugin.method.batchnorm import to_groups

SIZES = ((64, 32), (128, 16), (256, 8), (512, 4))  # channels and width of the four stages


class Loop(nn.BatchNorm2d):
    """What needs no code of its own: one call a group."""

    groups: int

    def forward(self, x):
        return torch.cat([super(Loop, self).forward(part) for part in x.chunk(self.groups)])


class Folded(Loop):
    """The groups as channels of one call, between two copies of the batch."""

    def forward(self, x):
        return batchnorm._folded(x, self.weight, self.bias, self.groups, self.eps)[0]


def seconds(layer, x, grad):
    wait = torch.cuda.synchronize if x.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    layer(x).backward(grad)
    wait()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--compile", action="store_true", help="torch.compile all four")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    print(f"torch {torch.__version__}, {args.device}, {dtype}, {args.threads} threads, ", end="")
    print(f"batch {args.batch}, {args.groups} groups, {args.pairs} pairs")
    print(f"{'layout':>13} {'C':>4} {'width':>5} {'plain ms':>9}", end="")
    print(f" {'loop/plain':>11} {'folded/plain':>12} {'ours/plain':>11}")
    figures = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        for channels, width in SIZES:
            shape = (args.batch, channels, width, width)
            x, grad = (torch.randn(shape, device=args.device, dtype=dtype) for _ in range(2))
            x, grad = (t.to(memory_format=layout) for t in (x, grad))
            x.requires_grad_()
            layers = {"plain": nn.BatchNorm2d(channels)}
            layers |= {"loop": Loop(channels), "folded": Folded(channels)}
            layers["loop"].groups = layers["folded"].groups = args.groups
            layers["ours"] = to_groups(nn.BatchNorm2d(channels), args.groups)
            layers = {k: m.to(args.device) for k, m in layers.items()}
            if args.compile:
                layers = {k: torch.compile(m) for k, m in layers.items()}
            for layer in layers.values():
                seconds(layer, x, grad)
            runs = [{k: seconds(m, x, grad) for k, m in layers.items()} for _ in range(args.pairs)]
            plain = statistics.median(r["plain"] for r in runs)
            loop, folded, ours = (
                statistics.median(r[k] / r["plain"] for r in runs)
                for k in ("loop", "folded", "ours")
            )
            name = str(layout).removeprefix("torch.").removesuffix("_format")
            print(f"{name:>13} {channels:4} {width:5} {plain * 1e3:9.2f}", end="")
            print(f" {loop:11.2f} {folded:12.2f} {ours:11.2f}")
            figures[f"time_ratio_{name}_{channels}"] = ours
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
