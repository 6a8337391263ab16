"""The online classifier and the online kNN: how good the features are while they are learned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ressl_plugin.means import Means


class OnlineEvaluation:
    """Mixed into the method: classifiers on detached features, kNN and validation of the student.

    Attributes:
        means: the epoch's means of everything that is logged.
    """

    def start_online(self) -> None:
        """Nothing seen yet."""
        self.means = Means()
        self._bank: list[tuple[Tensor, Tensor]] = []  # features of the epoch, for the online kNN

    def on_train_epoch_start(self) -> None:
        """Without a validation set nobody has emptied the bank."""
        self._bank.clear()

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
            self._bank.append((feats.float(), targets))
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
        return (self.current_epoch + 1) % self.cfg.knn_eval.every == 0

    def validation_step(self, batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Online classifier and kNN on the student's features of clean images."""
        X, targets = batch
        out = self(X)
        self._classify(self.classifier, out["feats"], targets, "val", "val")
        if self.momentum_classifier is not None:
            feats = self.momentum_backbone(self._layout(X))
            self._classify(self.momentum_classifier, feats, targets, "momentum_val", "val")
        if self._bank:
            self.knn.update(test_features=out["feats"].float(), test_targets=targets)

    def on_validation_epoch_end(self) -> None:
        """Log means over the images, and the kNN accuracies."""
        log = {k.replace("class_loss", "loss"): v for k, v in self.means.pop("val").items()}
        if self._bank:
            feats, targets = (torch.cat(parts) for parts in zip(*self._bank))
            self._bank.clear()
            known = targets >= 0
            self.knn.update(train_features=feats[known], train_targets=targets[known])
            log["val_knn_acc1"], log["val_knn_acc5"] = map(float, self.knn.compute())
            self.knn.reset()
        self.log_dict(log, sync_dist=True)
