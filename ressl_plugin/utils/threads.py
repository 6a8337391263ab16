"""Many files at once: Pillow lets other threads work, and shared disks answer late."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

AHEAD = 4096  # items that wait for a thread, at most: ImageNet has 1.3 million


def in_threads(function: Callable, items: Sequence, workers: int | None = None) -> Iterator:
    """`function` of each item, in order; `workers` threads, by default one a core up to 8."""
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(items), AHEAD):
            # where the caller leaves early, what waits is not begun
            yield from pool.map(function, items[start : start + AHEAD])
