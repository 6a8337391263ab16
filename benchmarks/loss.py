"""Time and peak memory of the relational loss beside the host's formula, forward and gradient.

    python benchmarks/loss.py --pairs 9 --json loss.json [--device cuda]

The two alternate in one process; a ratio is the median over the pairs of ours / the host's, so
below 1 is better. The host's formula is Eq. 3-5 over whole N x K matrices. solo-learn also clones
the queue every step: the column "+clone" shows that, the figures of the JSON leave it out.
"products" are the four matrix products alone, a bound for any pass that keeps nothing of N x K: on
a machine whose cores are shared they slow down more than the formula's reading of memory. Peak
memory on the CPU is the growth of the process's largest resident set over the inputs', each side
in a fresh process (so that MKL's buffers count too); on CUDA it is the caching allocator's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import common  # first: it puts the package on the path
import torch
from torch.nn import functional as F

from ressl_plugin.method.loss import relational_loss

TAU_S, TAU_T = 0.1, 0.04
LARGEST = (256, 131072, 512)
SMALLER = [(n, k, d) for k, d in ((4096, 128), (16384, 128), (65536, 256)) for n in (64, 128, 256)]


def host_formula(student, teacher, queue):
    logits_s, logits_t = student @ queue.T, teacher @ queue.T
    relation = F.log_softmax(logits_s / TAU_S, dim=1)
    loss = -(F.softmax(logits_t.detach() / TAU_T, dim=1) * relation).sum(1).mean()
    loss.backward()


def host_with_clone(student, teacher, queue):
    host_formula(student, teacher, queue.clone().detach())


def ours(student, teacher, queue):
    relational_loss(student, teacher, queue, TAU_S, TAU_T).loss.backward()


def products(student, teacher, queue, chunk=4096):
    """The least there is to compute without N x K: both scores and both reads, and nothing else."""
    rows = torch.cat([student.detach(), teacher])
    for block in queue.split(chunk):
        (rows @ block.T) @ block


SIDES = {"host": host_formula, "clone": host_with_clone, "ours": ours, "products": products}


def inputs(n, k, d, device):
    """Unit rows, made in place: memory peaks where the inputs end."""
    tensors = [torch.empty(rows, d, device=device).normal_() for rows in (n, n, k)]
    for tensor in tensors:
        for part in tensor.split(1024):
            part.div_(part.norm(dim=1, keepdim=True))
    tensors[0].requires_grad_()
    return tensors


def seconds(side, tensors, repeats=1):
    wait = torch.cuda.synchronize if tensors[0].is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        tensors[0].grad = None
        side(*tensors)
    wait()
    return (time.perf_counter() - start) / repeats


def time_ratios(size, device, pairs):
    """Seconds of the host's formula; (median, lowest, highest) of ours / host's; the medians of
    ours over the host's with the clone, and of the products alone over the host's."""
    tensors = inputs(*size, device)
    for side in SIDES.values():
        seconds(side, tensors)
    repeats = max(1, int(0.02 / seconds(host_formula, tensors)))
    sides = {name: partial(seconds, side, tensors, repeats) for name, side in SIDES.items()}
    runs = common.alternate(sides, pairs)
    beside = common.ratio(runs, "ours", "clone")[0], common.ratio(runs, "products", "host")[0]
    return common.middle(runs, "host"), common.ratio(runs, "ours", "host"), *beside


def peak_bytes(side, size, device):
    """Bytes that one loss and gradient needs beyond its inputs."""
    if device == "cpu":
        command = [sys.executable, __file__, "--peak-of", side, "--size", *map(str, size)]
        command += ["--threads", str(torch.get_num_threads())]
        return int(subprocess.run(command, check=True, capture_output=True).stdout)
    tensors = inputs(*size, device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    SIDES[side](*tensors)
    return torch.cuda.max_memory_allocated() - before


def own_peak(side, size):
    # VmHWM rather than ru_maxrss, which starts at the size of the process that started this one
    status = Path("/proc/self/status")
    largest = lambda: int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    SIDES[side](*inputs(64, 4096, 64, "cpu"))  # loads libraries and starts threads
    tensors = inputs(*size, "cpu")
    before = largest()
    SIDES[side](*tensors)
    return largest() - before


def main(argv=None):
    """Run the measurement; returns its figures."""
    parser = common.arguments(__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--peak-of", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=3, metavar=("N", "K", "D"), help="only this one")
    args = parser.parse_args(argv)
    if args.peak_of:
        torch.set_num_threads(args.threads)
        print(own_peak(args.peak_of, args.size))
        return {}
    common.begin(args, f"{args.device}, {args.threads} threads, float32, {args.pairs} pairs")
    rows, figures = [], {}
    for size in [tuple(args.size)] if args.size else [LARGEST, *SMALLER]:
        host_s, (ratio, low, high), clone, least = time_ratios(size, args.device, args.pairs)
        peaks = {side: peak_bytes(side, size, args.device) for side in ("host", "ours")}
        share = peaks["ours"] / peaks["host"]
        mebibytes = peaks["host"] / 2**20, peaks["ours"] / 2**20
        rows.append(("N {} K {} D {}".format(*size), host_s * 1e3, ratio, f"{low:.3f}-{high:.3f}",
                     clone, least, *mebibytes, share))  # fmt: skip
        if size == LARGEST:
            figures |= {"peak_bytes_ratio": share, "time_ratio": ratio}
        else:
            figures[f"time_ratio_{size[0]}_{size[1]}"] = ratio
    common.table(rows, ("", "host ms", "ours/host", "range", "ours/+clone", "products/host",
                        "host MiB", "ours MiB", "bytes"))  # fmt: skip
    return common.finish(args, figures)


if __name__ == "__main__":
    main()
