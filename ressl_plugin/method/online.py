"""The online classifier and the online kNN: how good the features are while they are learned."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from ressl_plugin.utils import distributed, knn
from ressl_plugin.utils.average_meter import AverageMeter

log = logging.getLogger(__name__)

STATE = "ressl_epoch"  # in a checkpoint: what a run that is resumed in mid-epoch has behind it


class OnlineEvaluation:
    """Mixed into the method: classifiers on detached features, kNN and validation of the student.

    Attributes:
        means: the epoch's means of everything that is logged.
    """

    def start_online(self) -> None:
        """Nothing seen yet."""
        self.means = AverageMeter()
        # for the online kNN, this rank's features and labels: of the epoch, of the clean images
        self._bank: list[tuple[Tensor, Tensor]] = []
        self._clean: list[tuple[Tensor, Tensor]] = []
        self._bankless: int | None = None  # an epoch whose first features an interruption has lost
        self._behind: list[dict] | None = None  # means of a checkpoint, until there is a device

    def on_save_checkpoint(self, checkpoint) -> None:
        """With the epoch's means so far, of every rank. Its features are too many to be saved:
        a checkpoint knows only that there were some. A collective operation."""
        super().on_save_checkpoint(checkpoint)
        lost = bool(self._bank) or self._bankless == self.current_epoch
        checkpoint[STATE] = {
            "means": self._behind or _of_all_ranks(self.means.state()),
            "bankless": self.current_epoch if lost else None,
        }

    def on_load_checkpoint(self, checkpoint) -> None:
        """Take over from the interrupted run; checkpoints of older versions have no such entry."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get(STATE) or {}
        self._behind, self._bankless = state.get("means"), state.get("bankless")

    def on_train_batch_start(self, batch, batch_idx: int) -> None:
        """The first step after a resume: the means go on. Not earlier: the checkpoint is loaded
        before the module is on its device."""
        behind, self._behind = self._behind, None
        if behind is None:
            return
        if len(behind) == distributed.world():
            self.means.load([behind[distributed.rank()]], self.device)
        else:  # means are over all ranks: it does not matter which one holds what
            self.means.load(behind, self.device, counts=distributed.rank() == 0)

    def on_train_epoch_start(self) -> None:
        """Without a validation set nobody has emptied the bank."""
        self._bank.clear()
        self._clean.clear()

    def online_loss(self, feats, teacher_feats, targets) -> Tensor | float:
        """Loss of the detached online classifiers; training features for the online kNN."""
        if self.num_classes < 2:
            return 0.0
        feats = feats.detach()
        loss = self._classify(self.classifier, feats, targets, "train")
        if self.momentum_classifier is not None:
            loss = loss + self._classify(
                self.momentum_classifier, teacher_feats, targets, "train_momentum"
            )
        if self.knn_eval and self._knn_epoch():
            self._bank.append((_kept(feats), targets))
        return loss

    def _classify(self, classifier, feats, targets, name: str, group: str = "train") -> Tensor:
        """Cross-entropy over the labelled images of a batch; 0 where none is (label -1)."""
        logits = classifier(feats)
        n = (targets >= 0).sum()
        loss = F.cross_entropy(logits.float(), targets, ignore_index=-1, reduction="sum")
        loss = loss / n.clamp(min=1)
        top = logits.detach().topk(min(5, logits.size(1)), dim=1).indices
        hits = (top == targets[:, None]).float()
        percent = 100 / n.clamp(min=1)
        stats = {
            f"{name}_class_loss": loss,
            f"{name}_acc1": percent * hits[:, 0].sum(),
            f"{name}_acc5": percent * hits.sum(),
        }
        self.means.add(stats, n, group)
        return loss

    def _knn_epoch(self) -> bool:
        due = (self.current_epoch + 1) % self.cfg.knn_eval.every == 0
        return due and self.current_epoch != self._bankless

    def validation_step(self, batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Online classifier and kNN on the student's features of clean images."""
        X, targets = batch
        out = self(X)
        self._classify(self.classifier, out["feats"], targets, "val", "val")
        if self.momentum_classifier is not None:
            feats = self.momentum_backbone(self._layout(X))
            self._classify(self.momentum_classifier, feats, targets, "momentum_val", "val")
        if self._bank:
            self._clean.append((_kept(out["feats"]), targets))

    def on_validation_epoch_end(self) -> None:
        """Log means over the images, and the kNN accuracies."""
        found = {k.replace("class_loss", "loss"): v for k, v in self.means.pop("val").items()}
        if self._bank:
            found["val_knn_acc1"], found["val_knn_acc5"] = self._knn_accuracies()
        elif self._bankless == self.current_epoch:
            self._bankless = None
            if distributed.rank() == 0:
                log.info(
                    "epoch %d has no val_knn_acc1: the run was resumed within it, and the features "
                    "of its first images are not in the checkpoint",
                    self.current_epoch,
                )
        self.log_dict(found, sync_dist=True)

    @torch.no_grad()
    def _knn_accuracies(self) -> tuple[float, float]:
        """Accuracy@1 and @5 of the host's weighted kNN; (-1, -1) where nothing is labelled.

        The metric itself would gather every rank's training features on every rank, ten gigabytes
        of ImageNet's, several times over. Here the clean images' are gathered, every rank finds the
        neighbours among its own, and the nearest of those are the neighbours.
        """
        train, labels = knn.labelled(*_taken(self._bank))
        test, targets = map(distributed.gather, knn.labelled(*_taken(self._clean)))
        distance = self.knn.distance_fx
        near, voted = knn.nearest(train, labels, test, self.knn.k, distance)
        if distributed.world() > 1:
            near, voted = (distributed.gather(x.t()).t() for x in (near, voted))
            near, best = near.topk(min(self.knn.k, near.size(1)))
            voted = voted.gather(1, best)
        if 0 in near.shape:
            return -1.0, -1.0
        temperature = self.knn.T if distance == "cosine" else None
        return knn.vote(near, voted, targets, self.num_classes, temperature)


def _of_all_ranks(state: dict) -> list[dict]:
    if distributed.world() == 1:
        return [state]
    states = [None] * distributed.world()
    torch.distributed.all_gather_object(states, state)
    return states


def _kept(feats: Tensor) -> Tensor:
    """A copy for later, in float32 or in the half precision that it has, which loses nothing."""
    half = feats.dtype in (torch.float16, torch.bfloat16)
    return feats.detach().to(feats.dtype if half else torch.float32, copy=True)


def _taken(bank: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Features and labels of all batches; the bank is empty then."""
    feats, targets = (torch.cat(parts) for parts in zip(*bank))
    bank.clear()
    return feats, targets
