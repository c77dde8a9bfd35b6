"""The trainer of one network. `base/base_trainer.py` has the loop; override its steps here."""

from __future__ import annotations

from base import BaseTrainer


class Trainer(BaseTrainer):
    """Trains one network on pairs (inputs, target), as the config says.

    For another kind of model, override one of these methods, from the most common to the rarest.
    BaseTrainer has their defaults, a few lines each::

        forward(batch)                  calls the model
        compute_losses(outputs, batch)  returns the losses by name
        predict(outputs)                returns what metrics compare; or predict(outputs, batch)
        train_step(batch)               trains on one batch
        valid_step(batch)               evaluates one batch
        begin_epoch()                   prepares an epoch
    """
