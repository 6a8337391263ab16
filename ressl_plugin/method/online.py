"""Online classifier, kNN and label-free metrics: how good features are while they are learned."""

from __future__ import annotations

import logging
import math
from collections import deque

import torch
from lightning.pytorch import Callback
from torch import Tensor

from ressl_plugin.method import metrics
from ressl_plugin.utils import distributed, knn
from ressl_plugin.utils.average_meter import AverageMeter
from ressl_plugin.utils.class_loss import class_loss

log = logging.getLogger(__name__)

STATE = "ressl_epoch"  # in a checkpoint: what a run that is resumed in mid-epoch has behind it


class OnlineEvaluation(Callback):
    """What a `ReSSL` module logs: means of its steps, online classifiers, kNN, quality."""

    def __init__(self):
        self.means = AverageMeter()  # the epoch's, of everything that is logged
        # for the online kNN, this rank's features and labels: of the epoch, of the clean images
        self._bank: list[tuple[Tensor, Tensor]] = []
        self._clean: list[tuple[Tensor, Tensor]] = []
        # and for the quality of a run without clean images: those of the epoch's last steps
        self._late: deque[Tensor] = deque()
        self._bankless: int | None = None  # an epoch whose first features an interruption has lost
        self._behind: list[dict] | None = None  # means of a checkpoint, until there is a device
        self._shows = False  # whether the bar will look at the loss of this step

    # Training

    def on_train_start(self, trainer, module) -> None:
        if module.knn_eval and not trainer.enable_validation and distributed.rank() == 0:
            log.info("knn_eval: no images to validate on, so there will be no val_knn_acc1")
        if module.cfg.quality_eval.enabled and not trainer.enable_validation:
            log.info("quality_eval: no images to validate on; of training views, as train_rankme")

    def on_train_epoch_start(self, trainer, module) -> None:
        self._bank.clear()  # an epoch that an exception has ended may have left something
        self._clean.clear()
        self._late.clear()

    def on_train_epoch_end(self, trainer, module) -> None:
        """After its last validation: each one takes all features of the epoch so far."""
        self._bank.clear()
        if self._late and self._bankless != module.current_epoch:
            feats = torch.cat(list(self._late))
            module.log_dict(self._quality("train", feats), sync_dist=True)
        self._late.clear()
        self._bankless = None

    def on_before_backward(self, trainer, module, loss) -> None:
        """Show the loss; before other callbacks are told that the batch is done."""
        if self._shows and module.seen is not None:
            module.log("loss", module.seen.loss, prog_bar=True, logger=False)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx: int) -> None:
        """Keep features of the step, for the kNN and for the quality without labels."""
        seen = module.seen
        if seen is None:  # the batch was left out
            return
        if _quality_due(module) and not trainer.enable_validation:
            self._late.append(_kept(seen.feats))
            if len(self._late) > metrics.MOST // (len(seen.feats) * distributed.world()) + 1:
                self._late.popleft()
        if seen.classes and module.knn_eval and self._knn_epoch(trainer, module):
            # copies: a captured step has the next batch's in the same place
            self._bank.append((_kept(seen.feats), seen.targets.clone()))

    def add(self, module) -> None:
        """Add what the step has seen to the means: the same operations at every step."""
        seen, uniform = module.seen, math.log(len(module.queue)) or 1.0  # one row: no entropy
        stats = {
            "train_ressl_loss": seen.loss,
            "target_entropy": seen.entropy / uniform,
            "embedding_spread": 1 - seen.z.mean(0).square().sum(),
        }
        if module.cfg.quality_eval.enabled:
            # of what the loss brings together: student and teacher, contrastive and weak view
            stats["train_alignment"] = (seen.z_s - seen.z).square().sum(-1).mean()
        self.means.add(stats, len(seen.z))
        for name, (loss, logits) in seen.classes.items():
            self._judge(loss, logits, seen.targets, name)

    def trained(self, module) -> dict[str, Tensor]:
        """Means over the epoch's steps, as far as they are due. A collective operation."""
        found = self.means.pop()
        if not _quality_due(module):
            found.pop("train_alignment", None)
        return found

    def _judge(self, loss, logits, targets: Tensor, name: str, group: str = "train") -> None:
        """Loss and accuracies of one classifier over the labelled images of a batch."""
        n = (targets >= 0).sum()
        top = logits.topk(min(5, logits.size(1)), dim=1).indices
        hits = (top == targets[:, None]).float()
        percent = 100 / n.clamp(min=1)
        stats = {
            f"{name}_class_loss": loss,
            f"{name}_acc1": percent * hits[:, 0].sum(),
            f"{name}_acc5": percent * hits.sum(),
        }
        self.means.add(stats, n, group)

    def _knn_epoch(self, trainer, module) -> bool:
        """Whether a validation of this epoch will ask for all of its features."""
        epoch, period = module.current_epoch + 1, trainer.check_val_every_n_epoch  # None: by steps
        validated = trainer.enable_validation and (period is None or epoch % period == 0)
        due = epoch % module.cfg.knn_eval.every == 0
        return validated and due and module.current_epoch != self._bankless

    # Validation

    def validate(self, module, X: Tensor, targets: Tensor) -> None:
        """Online classifier and kNN on the student's features of clean images (N, 3, S, S)."""
        out = module(X)
        found = {"val": out["logits"]}
        if module.momentum_classifier is not None:
            feats = module.momentum_forward(X)["feats"]
            found["momentum_val"] = module.momentum_classifier(feats)
        for name, logits in found.items():
            self._judge(class_loss(logits, targets), logits, targets, name, "val")
        if self._bank or _quality_due(module):
            self._clean.append((_kept(out["feats"]), targets))

    def validated(self, module) -> dict[str, Tensor | float]:
        """Means over the clean images, kNN accuracies, quality. A collective operation."""
        found = {k.replace("class_loss", "loss"): v for k, v in self.means.pop("val").items()}
        if self._bank:
            found["val_knn_acc1"], found["val_knn_acc5"] = self._knn_accuracies(module)
        if self._clean and _quality_due(module):
            found |= self._quality("val", _joined(self._clean)[0])
        self._clean.clear()
        return found

    @staticmethod
    def _quality(split: str, feats: Tensor) -> dict[str, float]:
        """RankMe, alpha-ReQ and uniformity over all ranks' features. A collective operation."""
        feats = metrics.sampled(feats, max(1, metrics.MOST // distributed.world()))
        found = metrics.of_features(distributed.gather(feats))
        return {f"{split}_{name}": value for name, value in found.items()}

    @torch.no_grad()
    def _knn_accuracies(self, module) -> tuple[float, float]:
        """Accuracy@1 and @5 of the host's weighted kNN; (-1, -1) where nothing is labelled.

        The metric itself would gather every rank's training features on every rank, ten gigabytes
        of ImageNet's, several times over. Here the clean images' are gathered, every rank finds the
        neighbours among its own, and the nearest of those are the neighbours.
        """
        metric = module.knn
        train, labels = knn.labelled(*_joined(self._bank))
        test, targets = map(distributed.gather, knn.labelled(*_joined(self._clean)))
        near, voted = knn.nearest(train, labels, test, metric.k, metric.distance_fx)
        if distributed.world() > 1:
            near, voted = (distributed.gather(x.t()).t() for x in (near, voted))
            near, best = near.topk(min(metric.k, near.size(1)))
            voted = voted.gather(1, best)
        if 0 in near.shape:
            return -1.0, -1.0
        temperature = metric.T if metric.distance_fx == "cosine" else None
        return knn.vote(near, voted, targets, module.num_classes, temperature)

    # Resuming within an epoch

    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        """With the epoch's means so far, of every rank. Its features are too many to be saved:
        a checkpoint knows only that there were some. A collective operation."""
        lost = bool(self._bank or self._late) or self._bankless == module.current_epoch
        checkpoint[STATE] = {
            "means": self._behind or distributed.gather_objects(self.means.state()),
            "bankless": module.current_epoch if lost else None,
        }

    def on_load_checkpoint(self, trainer, module, checkpoint) -> None:
        state = checkpoint.get(STATE) or {}  # 0.1.0 has no such entry
        self._behind, self._bankless = state.get("means"), state.get("bankless")

    def on_train_batch_start(self, trainer, module, batch, batch_idx: int) -> None:
        """The first step after a resume: the means go on. Not earlier: the checkpoint is loaded
        before the module is on its device."""
        self._shows = batch_idx % module.cfg.performance.log_every == 0
        behind, self._behind = self._behind, None
        if behind is None:
            return
        if self._bankless == module.current_epoch and distributed.rank() == 0:
            log.info(
                "epoch %d will have no val_knn_acc1 or train_rankme: the run was resumed within "
                "it, and the features of its first images are not in the checkpoint",
                module.current_epoch + 1,
            )
        if len(behind) == distributed.world():
            self.means.load([behind[distributed.rank()]], module.device)
        else:  # means are over all ranks: it does not matter which one holds what
            self.means.load(behind, module.device, counts=distributed.rank() == 0)


def _quality_due(module) -> bool:
    """Whether this epoch's features are to be judged without labels."""
    settings = module.cfg.quality_eval
    return settings.enabled and (module.current_epoch + 1) % settings.every == 0


def _kept(feats: Tensor) -> Tensor:
    """A copy for later, in float32 or in the half precision that it has, which loses nothing."""
    half = feats.dtype in (torch.float16, torch.bfloat16)
    return feats.detach().to(feats.dtype if half else torch.float32, copy=True)


def _joined(bank: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Features and labels of all batches, which the bank holds as one, and not twice, then."""
    feats, targets = (torch.cat(parts) for parts in zip(*bank))
    bank[:] = [(feats, targets)]
    return feats, targets
