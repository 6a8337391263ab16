"""Data workers leave the signals of a run to the run."""

from __future__ import annotations

import os
import signal
import threading


def leave_signals(worker: int) -> None:
    """For DataLoader(worker_init_fn=...): only the parent ends this worker.

    A terminal, torchrun, systemd and SLURM signal all processes of a run. The training process then
    finishes its step and saves, for which it needs its workers; PyTorch's own handler would end
    them, and their death would end the step.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # and in every thread made later
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """PyTorch and multiprocessing end their workers by SIGTERM, too."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
