"""The whole training step as one function of static tensors: on a GPU, one CUDA graph.

Views, both forward passes, loss, memory, means, backward pass, optimizer and teacher read and write
tensors that stay where they are, and nothing waits for the host. What the host draws (indexes, the
views' parameters, the teacher's order) and the rates arrive in one copy; a replay does the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from omegaconf import DictConfig
from torch import Tensor

from ressl_plugin.method.ressl import ReSSL
from ressl_plugin.utils.errors import UserError

log = logging.getLogger(__name__)

WARM = 3  # steps that are run as they are, before one is captured: lazy allocations, autotuning
ALIGN = 16  # bytes
PRECISIONS = ("32-true", "bf16-mixed")


class CapturedReSSL(ReSSL):
    """`ReSSL`, whose step is captured: the same arithmetic, launched at once.

    Lightning's loop stays as it is, with its count of steps, its schedules and checkpoints, so that
    a run may go on with or without capture. But what it calls backward pass and optimizer step is
    over by then: on_after_backward finds no gradients, and on_before_optimizer_step, which does,
    comes no more once the step is replayed. Without CUDA the function is called as it is.

    The data are an `UndrawnLoader`'s. `obstacle` tells which runs can be captured.
    """

    draws_views = True  # to data.training: the loader need not

    def on_train_start(self) -> None:
        """Nothing stays of an earlier fit, whose tensors may lie elsewhere by now."""
        super().on_train_start()
        self._inputs = self._graph = self._warms_up = None
        self._warm, self._stream = 0, torch.cuda.Stream() if self.on_gpu else None

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def transfer_batch_to_device(self, batch, device, dataloader_idx: int):
        """What is trained on stays on the host, until `load` moves all that a step needs."""
        if self.trainer.training:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def training_step(self, batch, batch_idx: int) -> Tensor:
        """The whole step. Returns its loss, which has no gradient any more."""
        optimizer, loader = self.optimizers(), self.trainer.train_dataloader
        m = self.momentum_now(self.trainer.global_step)
        self.load(batch, batch_idx, [group["lr"] for group in optimizer.param_groups], m)
        self._run(lambda: self.step(loader, optimizer))
        return self._loss

    def backward(self, loss: Tensor, *args, **kwargs) -> None:
        """`step` has done it."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure) -> None:
        """`step`, which the closure calls, does it."""
        optimizer_closure()

    def load(self, batch, batch_idx: int, lrs: list[float], m: float) -> None:
        """Give the next step its inputs, in one copy.

        Args:
            batch: `(indexes (N,), [Params of each crop])`, on the host.
            lrs: learning rate of each parameter group.
            m: of Eq. 6.
        """
        indexes, params = batch
        shares = super().loss_shares()
        rates = torch.tensor([*lrs, m, *(shares or (1, 0))], dtype=torch.float64)
        orders = super().orders(indexes, batch_idx) if self.permutes else ()
        drawn = [value for view in params for value in view if value is not None]
        tensors = [rates, indexes, *orders, *drawn]
        if self._inputs is None:
            self._inputs = OneCopy(tensors, self.device)
        self._inputs.send(tensors)
        if self._warms_up != (shares is not None):  # without InfoNCE it is another graph
            self._warms_up, self._graph = shares is not None, None

        there = iter(self._inputs.there)
        self._rates, self._indexes = next(there), next(there)
        self._orders = [next(there) for _ in orders]
        self._params = [view.map(lambda _: next(there)) for view in params]

    def step(self, loader, optimizer) -> None:
        """One step of training, from indexes to teacher, of what `load` has sent."""
        views = loader.render(loader.images[self._indexes], self._params)
        batch = self._indexes, views, loader.targets[self._indexes]
        loss = super().training_step(batch, 0)
        with torch.autocast(self.device.type, enabled=False):  # as Lightning leaves it for these
            loss.backward()
            self._optimize(optimizer)
            constant = self.base_m == self.final_m
            self.update_teacher(self.base_m if constant else self._rates[-3])
        optimizer.zero_grad()
        self._loss = loss.detach()

    def _optimize(self, optimizer) -> None:
        """With the rates on the device in the place of numbers, which a graph would keep."""
        groups = optimizer.param_groups
        numbers = [group["lr"] for group in groups]
        # the kernel of a GPU reads a float32, that of a processor any
        for group, lr in zip(groups, self._rates.float() if self.on_gpu else self._rates):
            group["lr"] = lr
        optimizer.step()
        for group, number in zip(groups, numbers):
            group["lr"] = number

    def orders(self, X, batch_idx: int):
        """The teacher's order and back, as `load` has sent them."""
        return self._orders

    def loss_shares(self):
        """ReSSL's and InfoNCE's, as `load` has sent them; None once InfoNCE is over."""
        return self._rates[-2:].float().unbind() if self._warms_up else None

    def _run(self, step: Callable[[], None]) -> None:
        """Replay the step; or run it, or capture it first, on a stream of its own (see "CUDA
        graphs" in PyTorch's notes): the first steps are steps as all others."""
        if not self.on_gpu:
            return step()
        current = torch.cuda.current_stream()
        if self._graph is None and self._warm < WARM:
            self._warm += 1
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                step()
            current.wait_stream(self._stream)
            return
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            # what other threads (a checkpoint's writer) ask of the device meanwhile is no error
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                step()
            self._graph = graph
        self._graph.replay()


class OneCopy:
    """Tensors of the host that go to a device in one copy, and always to the same place.

    Attributes:
        there: the tensors on the device, in the order of those on the host.
    """

    def __init__(self, like: list[Tensor], device: torch.device):
        self._like = like
        self._sizes = [-(-tensor.nbytes // ALIGN) * ALIGN for tensor in like]
        self._memory = torch.zeros(sum(self._sizes), dtype=torch.uint8, device=device)
        self.there = self._parts(self._memory)

    def send(self, tensors: list[Tensor]) -> None:
        """Copy tensors of the shapes and types of the first; nothing waits.

        The host's side is a new piece of pinned memory: PyTorch's allocator gives one out again
        when the copy from it is done, so that no step overwrites what is still being read.
        """
        memory = torch.empty(len(self._memory), dtype=torch.uint8, pin_memory=self._memory.is_cuda)
        for part, tensor in zip(self._parts(memory), tensors, strict=True):
            part.copy_(tensor)
        self._memory.copy_(memory, non_blocking=True)

    def _parts(self, memory: Tensor) -> list[Tensor]:
        parts = zip(memory.split(self._sizes), self._like)
        return [part[: t.nbytes].view(t.dtype).view(t.shape) for part, t in parts]


def settle(cfg: DictConfig, backend: str, processes: int) -> None:
    """Put true or false in the place of performance.capture=auto, and say what is done.

    Args:
        cfg: what the model is built of (host_config), changed in place.
        backend: of the data, which draws the views.
    """
    wanted, gpu = cfg.performance.capture, cfg.accelerator != "cpu"
    reason = obstacle(cfg, backend, processes)
    if wanted is True and reason:
        raise UserError(f"config: performance.capture=true and {reason}")
    if wanted == "auto":
        cfg.performance.capture = gpu and reason is None
        if gpu and reason and cfg.method == "ressl":
            log.info("performance.capture=auto: steps are not captured (%s)", reason)
    if cfg.performance.capture:
        how = "replayed as a CUDA graph" if gpu else "called as it is"
        log.info("performance.capture: the whole step is one function, %s", how)


def obstacle(cfg: DictConfig, backend: str, processes: int) -> str | None:
    """What keeps the steps of a run from being captured; None if they can be. See `settle`."""
    sgd = cfg.optimizer.name == "sgd" and cfg.optimizer.kwargs.get("fused")
    wrong = {
        f"method={cfg.method}; only ressl has such a step": cfg.method != "ressl",
        f"data.backend={backend}; it must be batched": backend != "batched",
        f"{processes} processes; it must be one": processes > 1,
        f"strategy={cfg.strategy}; it must be auto": cfg.strategy != "auto",
        f"accumulate_grad_batches={cfg.accumulate_grad_batches}; it must be 1": (
            cfg.accumulate_grad_batches > 1
        ),
        f"precision={cfg.precision}; it must be {' or '.join(PRECISIONS)}": (
            cfg.precision not in PRECISIONS
        ),
        f"optimizer.name={cfg.optimizer.name}; it must be sgd, fused": not sgd,
        "batchnorm.mode=shuffle; it must be group": cfg.batchnorm.mode == "shuffle",
        "faults.non_finite=skip; it must be stop": cfg.faults.non_finite == "skip",
        "profile=true; it cannot look into a captured step": cfg.profile,
        "detect_anomaly=true; it waits for the GPU within a step": cfg.get("detect_anomaly"),
        "reload_dataloaders_every_n_epochs; the images' place must stay": (
            cfg.get("reload_dataloaders_every_n_epochs")
        ),
    }
    return next((reason for reason, stands in wrong.items() if stands), None)
