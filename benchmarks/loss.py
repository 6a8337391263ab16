"""Time and peak memory of the relational loss beside the host's formula, forward and gradient.

    python benchmarks/loss.py --pairs 15 --json loss.json [--device cuda] [--threads 2]

The two alternate in one process; a ratio is the median over the pairs of ours / the host's, so
below 1 is better. The host's formula is Eq. 3-5 over whole N x K matrices. solo-learn also clones
the queue every step: the column "+clone" shows that, the figures of the JSON leave it out. Peak
memory on the CPU is the growth of the process's largest resident set over the inputs', each side
in a fresh process (so that MKL's buffers count too); on CUDA it is the caching allocator's.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ressl_plugin.loss import relational_loss

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


SIDES = {"host": host_formula, "clone": host_with_clone, "ours": ours}


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
    """Seconds of the host's formula; median of ours / host's, with and without the clone."""
    tensors = inputs(*size, device)
    for side in SIDES.values():
        seconds(side, tensors)
    repeats = max(1, int(0.02 / seconds(host_formula, tensors)))
    runs = [{s: seconds(f, tensors, repeats) for s, f in SIDES.items()} for _ in range(pairs)]
    host = statistics.median(run["host"] for run in runs)
    return host, *(statistics.median(r["ours"] / r[s] for r in runs) for s in ("host", "clone"))


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak-of", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=3, metavar=("N", "K", "D"), help="only this one")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(own_peak(args.peak_of, args.size))
        return

    where = f"{args.threads} threads" if args.device == "cpu" else torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {args.device} ({where}), float32, {args.pairs} pairs")
    print(
        f"{'N':>4} {'K':>7} {'D':>4} {'host ms':>8} {'ours/host':>10} {'ours/+clone':>12}", end=""
    )
    print(f" {'host MiB':>9} {'ours MiB':>9} {'bytes':>6}")
    figures = {}
    for size in [tuple(args.size)] if args.size else [LARGEST, *SMALLER]:
        host_s, ratio, clone_ratio = time_ratios(size, args.device, args.pairs)
        peaks = {side: peak_bytes(side, size, args.device) for side in ("host", "ours")}
        bytes_ratio = peaks["ours"] / peaks["host"]
        print(
            f"{size[0]:4} {size[1]:7} {size[2]:4} {host_s * 1e3:8.1f} {ratio:10.3f} "
            f"{clone_ratio:12.3f} {peaks['host'] / 2**20:9.1f} {peaks['ours'] / 2**20:9.1f} "
            f"{bytes_ratio:6.3f}",
            flush=True,
        )
        if size == LARGEST:
            figures |= {"peak_bytes_ratio": bytes_ratio, "time_ratio": ratio}
        else:
            figures[f"time_ratio_{size[0]}_{size[1]}"] = ratio
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
