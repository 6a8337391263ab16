"""What both generations of the host get wrong on today's stack, mended in memory.

Each mend names the fault. The host's files are never touched.
"""

import functools
import sys

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics.metric import Metric
from torchmetrics.utilities import dim_zero_cat

from ressl_plugin.utils.class_loss import class_loss
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.knn import labelled, nearest, vote


def mend_top5() -> None:
    """With fewer than five classes, top-5 asks for more logits than there are.

    It breaks the momentum classifier and LinearModel; accuracy@5 is then over all classes.
    """
    from solo.utils import metrics

    host = metrics.accuracy_at_k

    def accuracy_at_k(outputs, targets, top_k=(1, 5)):
        classes = outputs.size(1)
        return host(outputs, targets, top_k=[min(k, classes) for k in top_k])

    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "solo" and getattr(module, "accuracy_at_k", None) is host:
            module.accuracy_at_k = accuracy_at_k


def mend_knn() -> None:
    """Three faults of WeightedKNNClassifier, the class itself being kept (others hold it).

    `compute_on_step` is gone from torchmetrics; without it, calling the metric would compute at
    every batch; and classes are counted on the test labels alone, so that a test set without
    the highest class fails.
    """
    from solo.utils.knn import WeightedKNNClassifier as Knn

    def __init__(
        self,
        k=20,
        T=0.07,
        max_distance_matrix_size=int(5e6),
        distance_fx="cosine",
        epsilon=1e-5,
        dist_sync_on_step=False,
    ):
        Metric.__init__(self, dist_sync_on_step=dist_sync_on_step)
        self.k = k
        self.T = T
        self.max_distance_matrix_size = max_distance_matrix_size
        self.distance_fx = distance_fx
        self.epsilon = epsilon
        for name in ("train_features", "train_targets", "test_features", "test_targets"):
            self.add_state(name, default=[], persistent=False)

    def forward(self, *args, **kwargs):
        self.update(*args, **kwargs)

    Knn.__init__ = __init__
    Knn.forward = forward
    Knn.compute = torch.no_grad()(weighted_knn)


def weighted_knn(self) -> tuple[float, float]:
    """Accuracy@1 and @5 (per cent) of the weighted k-NN vote, as the host defines it.

    Weights: exp(cosine / T), or 1 / (euclidean distance + epsilon). Cosine features need not be
    normalised. (-1, -1) when there is nothing to compare.
    """
    states = (self.train_features, self.train_targets, self.test_features, self.test_targets)
    # A list, or a tensor once torchmetrics has gathered it over processes.
    if any(len(state) == 0 for state in states):
        return -1, -1
    train, train_labels, test, test_labels = map(dim_zero_cat, states)
    # No label, no vote and no verdict.
    train, train_labels = labelled(train, train_labels)
    test, test_labels = labelled(test, test_labels)
    if len(train) == 0 or len(test) == 0:
        return -1, -1
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    settings = self.k, self.distance_fx, self.epsilon, self.max_distance_matrix_size
    near, labels = nearest(train, train_labels, test, *settings)
    self.reset()
    temperature = self.T if self.distance_fx == "cosine" else None
    return vote(near, labels, test_labels, classes, temperature)


def mend_reduce_on_plateau(linear_class) -> None:
    """LinearModel with `scheduler=reduce` names no quantity to watch, which Lightning refuses.

    It is named to a Trainer that sets up a training; any other caller gets what the host gives.
    """
    host = linear_class.configure_optimizers

    def configure_optimizers(self):
        configured = host(self)
        plateau = isinstance(configured, tuple) and isinstance(configured[1][0], ReduceLROnPlateau)
        if plateau and _in_training(self):
            watch = {"scheduler": configured[1][0], "monitor": "val_loss"}
            return configured[0], [watch]
        return configured

    linear_class.configure_optimizers = configure_optimizers


def _in_training(model) -> bool:
    try:
        return model.trainer.training
    except RuntimeError:  # attached to none
        return False


def mend_momentum_update() -> None:
    """The teacher moves in `optimizer_step`, as soon as the student has.

    The host's `on_train_batch_end` comes after the callbacks, so that none could save a whole step;
    1.0.2's wants an argument that is no longer passed and takes the schedule's length from the
    loader, whatever limit_train_batches says. And no checkpoint keeps tau: it is computed of the
    steps done, resumed or not.
    """
    from solo.methods.base import BaseMomentumMethod

    def optimizer_step(self, *args, **kwargs):
        done, steps = self.trainer.global_step, self.trainer.estimated_stepping_batches
        super(BaseMomentumMethod, self).optimizer_step(*args, **kwargs)
        self.momentum_updater.update_tau(cur_step=done, max_steps=steps)
        for student, teacher in self.momentum_pairs:
            self.momentum_updater.update(student, teacher)
        self.log("tau", self.momentum_updater.cur_tau)

    BaseMomentumMethod.optimizer_step = optimizer_step
    for hook in ("on_train_start", "on_train_batch_end"):  # which counts the steps; which moved it
        delattr(BaseMomentumMethod, hook)


def mend_class_loss() -> None:
    """The mean over the labels of a batch that has none (of STL-10, 20 images in 21 have none) is
    NaN, and so is the loss of the step; it is 0 now."""
    from solo.methods.base import BaseMethod, BaseMomentumMethod

    BaseMethod._base_shared_step = _with_class_loss(BaseMethod._base_shared_step)
    step = BaseMomentumMethod._shared_step_momentum
    BaseMomentumMethod._shared_step_momentum = _with_class_loss(step)


def _with_class_loss(host):
    @functools.wraps(host)
    def step(self, X, targets):
        out = host(self, X, targets)
        if "loss" in out:  # the teacher may have no classifier
            out["loss"] = class_loss(out["logits"], targets)
        return out

    return step


def mend_late_buffers() -> None:
    """SwAV and DeepCluster v2 make their memories when a training starts; a checkpoint that has
    them was refused as another network's. They are kept until then."""
    from solo.methods.deepclusterv2 import DeepClusterV2
    from solo.methods.swav import SwAV

    _keep_until_the_start(SwAV, ("queue",))
    _keep_until_the_start(DeepClusterV2, ("local_memory_index", "local_memory_embeddings"))


def _keep_until_the_start(cls, names: tuple) -> None:
    host = cls.on_train_start

    def _load_from_state_dict(self, state_dict, prefix, *args):
        late = [n for n in names if prefix + n in state_dict and n not in self._buffers]
        self._late_buffers = {name: state_dict.pop(prefix + name) for name in late}
        super(cls, self)._load_from_state_dict(state_dict, prefix, *args)

    def on_train_start(self):
        host(self)
        for name, saved in self.__dict__.pop("_late_buffers", {}).items():
            made = self.get_buffer(name)
            if made.shape != saved.shape:
                raise UserError(
                    f"the checkpoint's {name} is {tuple(saved.shape)}, this run's is "
                    f"{tuple(made.shape)}: resume with the same batch and number of devices"
                )
            made.copy_(saved)

    cls._load_from_state_dict, cls.on_train_start = _load_from_state_dict, on_train_start


def apply() -> None:
    """All of the above, once, after `solo.methods` has been imported."""
    from solo.methods.linear import LinearModel

    mend_top5()
    mend_knn()
    mend_momentum_update()
    mend_class_loss()
    mend_late_buffers()
    mend_reduce_on_plateau(LinearModel)


def rename_old_keys(module, state_dict, prefix, *_) -> None:
    """load_state_dict pre-hook: names of 1.0.2's checkpoints to the main branch's."""
    for old, new in (("encoder.", "backbone."), ("momentum_encoder.", "momentum_backbone.")):
        for key in [key for key in state_dict if key.startswith(prefix + old)]:
            state_dict[prefix + new + key[len(prefix + old) :]] = state_dict.pop(key)
