"""Evaluate a run's best checkpoint: ``python test.py -r saved/digits/<run>``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

try:
    from base.config.command_line import choose_tested, parse_test, run
    from base.system.processes import refuse_several_processes
except ImportError as error:  # a package is missing, or pytorch-template's base/ replaced ours
    sys.exit(f"{error}: install requirements.txt, and keep Kindling's own base/ and logger/")


def main(arguments: Sequence[str]) -> int:
    """Parse, load, build, run."""
    options = parse_test(arguments)
    refuse_several_processes("test.py")
    config, path = choose_tested(options)

    from base.names.check import check_names
    from base.run import (
        build_tested_experiment,
        build_trainer,
        choose_checkpoint,
        choose_device,
        make_repeatable,
        run_test,
    )
    from base.system.run_folder import run_folder_of
    from base.system.seeding import seed_everything
    from logger.console import setup_logging

    with config.placed():  # errors name their place in the config file
        check_names(config)
        make_repeatable(config)
        device = choose_device(options.device or config["device"])
        seed_everything(config["seed"])

        setup_logging(None)
        checkpoint = choose_checkpoint(path)
        experiment = build_tested_experiment(config, device, checkpoint)
        trainer = build_trainer(config, experiment)
        values = run_test(trainer, checkpoint, run_folder_of(path))
    print(json.dumps(values))
    return 0


if __name__ == "__main__":
    run(main)
