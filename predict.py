"""Predict files with a trained run: ``python predict.py -r saved/digits/<run> images``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

try:
    from base.config.command_line import choose_run, parse_predict, run
    from base.system.processes import refuse_several_processes
except ImportError as error:  # a package is missing, or pytorch-template's base/ replaced ours
    sys.exit(f"{error}: install requirements.txt, and keep Kindling's own base/ and logger/")


def main(arguments: Sequence[str]) -> int:
    """Parse, load, predict, write."""
    options = parse_predict(arguments)
    refuse_several_processes("predict.py")
    path = choose_run(options)

    from base.prediction.delivery import open_delivery

    # What cannot be written is reported before torch is imported.
    with open_delivery(options.output, options.masks, options.overwrite) as delivery:
        from base.prediction import Predictions, load_trained, open_samples
        from base.run import choose_device
        from logger.console import setup_logging

        setup_logging(None, verbosity=0)
        trained = load_trained(path, choose_device(options.device or "auto"), options.overrides)
        predictions = Predictions(
            trained,
            open_samples(trained, options.files, options.batch_size),
            top_k=options.top_k,
            threshold=options.threshold,
            tta=options.tta,
            masks=delivery.masks,
            overwrite=options.overwrite,
            progress=True,
        )
        return delivery.deliver(predictions)


if __name__ == "__main__":
    run(main)
