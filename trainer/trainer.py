"""The trainer of one network. The loop is in `base/base_trainer.py`; change a step of it here."""

from __future__ import annotations

from base import BaseTrainer


class Trainer(BaseTrainer):
    """Trains one network on pairs (inputs, target), as the config says.

    To take another kind of model, override one of these, from the most common to the rarest
    (each stands in BaseTrainer with its default, in a few lines)::

        forward(batch)                  how the model is called
        compute_losses(outputs, batch)  the losses by name
        predict(outputs)                what the metrics see; or predict(outputs, batch)
        train_step(batch)               the whole step
        valid_step(batch)               its counterpart without gradients
        begin_epoch()                   what changes from epoch to epoch
    """
