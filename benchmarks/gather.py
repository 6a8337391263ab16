"""What a step's gathering of keys costs, beside what DDP's default would send.

    python benchmarks/gather.py --ranks 2 --json gather.json

Processes on this machine over gloo. Every step all ranks gather N x D teacher embeddings for the
queue. DDP's `broadcast_buffers` would send the K x D queue from rank 0 at every forward as well;
the plugin tells it not to. Times are of rank 0, with a barrier before each.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from functools import partial
from pathlib import Path

import common
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ressl_plugin.utils import distributed

SIZES = ((32, 4096, 128), (32, 65536, 256), (32, 131072, 512), (256, 131072, 512))  # N a rank, K, D


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the measurement; returns its figures, in ms."""
    parser = common.arguments(__doc__, pairs=9, threads=1)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--largest", type=int, default=131072, help="leave out longer queues")
    args = parser.parse_args(argv)
    common.begin(args, f"{args.ranks} processes, gloo, {args.pairs} repetitions")
    sizes = [size for size in SIZES if size[1] <= args.largest]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.pt"
        mp.spawn(work, (args.ranks, sizes, args.pairs, folder, str(file)), nprocs=args.ranks)
        found = torch.load(file, weights_only=True)
    rows, figures = [], {}
    for (n, k, d), (gather, uneven, broadcast) in zip(sizes, found):
        rows.append((f"N {n} a rank, K {k}, D {d}", gather, uneven, broadcast, gather / broadcast))
        figures |= {f"gather_ms_{n}_{k}": gather, f"broadcast_ms_{n}_{k}": broadcast}
    common.table(rows, ("ms", "gather", "of uneven batches", "queue broadcast", "gather/broadcast"))
    return common.finish(args, figures)


def work(rank: int, ranks: int, sizes, pairs: int, folder: str, file: str) -> None:
    """One process: the median milliseconds of each exchange, written by rank 0."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks)
    found = []
    for n, k, d in sizes:
        keys, queue = torch.randn(n, d), torch.randn(k, d)
        found.append([
            milliseconds(partial(distributed.gather, keys, True), pairs),
            milliseconds(partial(distributed.gather, keys, False), pairs),
            milliseconds(partial(dist.broadcast, queue, 0), pairs),
        ])  # fmt: skip
    if rank == 0:
        torch.save(found, file)
    dist.destroy_process_group()


def milliseconds(exchange, pairs: int) -> float:
    """Median of `pairs` after one more."""
    taken = []
    for _ in range(pairs + 1):
        dist.barrier()
        start = common.now()
        exchange()
        taken.append((common.now() - start) * 1e3)
    return statistics.median(taken[1:])


if __name__ == "__main__":
    main()
