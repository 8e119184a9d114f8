"""Avalanche's loop over the batches of an epoch, a step of which may be repeated."""

from typing import Any

from cl_clipfit.errors import UserError
from cl_clipfit.runtime import signals
from cl_clipfit.runtime.out_of_memory import NEEDS_LESS, fits, release
from cl_clipfit.runtime.rng import Draws


class RepeatableSteps:
    """Avalanche's loop over the batches of an epoch, a step of which may be repeated.

    It goes before Avalanche's template among the bases of a class, whose attributes it uses.
    """

    features: Any

    def allow_repeats(self: Any) -> None:
        """Take note of a size that the user chose: it is not made smaller."""
        self.micro_batch_given = self.model.micro_batch is not None

    def training_epoch(self: Any, **kwargs: Any) -> None:
        """Run the steps of an epoch: Avalanche's loop, but for the passes that may be repeated."""
        journal = self.journal
        for batch in journal.batches(self.dataloader) if journal else self.dataloader:
            if self._stop_training:
                break
            self.mbatch, images = batch, batch[0]
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            self.optimizer.zero_grad()
            self.loss = self._make_empty_loss()
            self._before_forward(**kwargs)
            self._run_passes(**kwargs)
            self._after_backward(**kwargs)
            self._before_update(**kwargs)
            self.task_steps += 1
            if self.watch.leaves_out(self, images):
                self.scheduler.step()  # a batch that is left out leaves the rest as it was
            else:
                self.optimizer_step()
            self._after_update(**kwargs)
            self._after_training_iteration(**kwargs)
            if signals.pending():
                if journal:
                    self.watch.flush(self)
                    journal.step_done()
                signals.check()
        self.watch.flush(self)

    def _run_passes(self: Any, **kwargs: Any) -> None:
        """Compute loss and gradients of a step; fewer images at a time once memory runs out."""
        batch, before = list(self.mbatch), self.model.micro_batch
        draws = Draws(self, self.device)
        while not fits(lambda: self._passes(**kwargs)):
            self.model.micro_batch = self._fewer_images(len(batch[0]))
            self.mb_output, self.features, self.mbatch = None, None, list(batch)
            self.optimizer.zero_grad()
            self.loss = self._make_empty_loss()
            release()
            draws.restore()
        if self.model.micro_batch != before:
            self.warn(f"out of memory: {self.model.micro_batch} images at a time from now on")

    def _passes(self: Any, **kwargs: Any) -> None:
        self.mb_output = self.forward()
        self._after_forward(**kwargs)
        self.loss += self.criterion()
        self._before_backward(**kwargs)
        self.backward()

    def _fewer_images(self: Any, batch_size: int) -> int:
        size = min(self.model.micro_batch or batch_size, batch_size)
        if size == 1:
            raise UserError(f"out of memory in training, with one image at a time: {NEEDS_LESS}")
        if self.micro_batch_given:
            raise UserError(
                f"out of memory with --micro-batch {self.model.micro_batch}: give a smaller one,"
                f" or auto; {NEEDS_LESS}"
            )
        return (size + 1) // 2
