"""Between two steps: where a run can be saved and left."""

from __future__ import annotations


def can_resume_here(trainer) -> bool:
    """Whether Lightning goes on exactly from after this step: not while gradients are being
    accumulated, and not before a validation, which it would skip with all that it draws."""
    loop = trainer.fit_loop
    validates = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
    return not (trainer.is_last_batch or validates or loop._should_accumulate())


def followed_by(hook, boundary, trainer):
    """A hook of the module, with `boundary(trainer)` after it."""

    def call(*args, **kwargs):
        result = hook(*args, **kwargs)
        boundary(trainer)
        return result

    return call
