"""Train a model: ``python train.py -c config/digits.yaml``; ``-r`` goes on with a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

try:
    from base.config.command_line import choose_config, parse_train, run
except ImportError as error:  # as where pytorch-template's base/ or logger/ replaced ours
    sys.exit(f"{error}: install requirements.txt, and keep Kindling's own base/ and logger/")


def main(arguments: Sequence[str]) -> int:
    """Parse, load, build, run."""
    options = parse_train(arguments)
    if options.schema or options.list is not None:
        from base.names.listing import show_names

        return show_names(None if options.schema else options.list)
    config, resume_from = choose_config(options)
    if options.print_config:
        print(config.describe(), end="")
        return 0

    # A config with a fault in its structure has ended by now, before torch is imported.
    from base.names.check import check_names
    from base.run.build import build_experiment, build_trainer, choose_device, make_repeatable
    from base.run.checks import begin, check, dry_run
    from base.run.data_changes import record_to_resume, references_to_resume, refuse_changed_data
    from base.run.session import open_run
    from base.system.deferred_files import defer_files
    from base.system.seeding import seed_everything
    from logger.console import setup_logging

    setup_logging(None, config["trainer"]["verbosity"])
    # Errors say where in the file; nothing is written before the run begins.
    with config.placed(), defer_files(options.dry_run) as files:
        check_names(config)
        device = choose_device(options.device or config["device"])
        make_repeatable(config)
        seed_everything(config["seed"])

        record = record_to_resume(config, resume_from)
        references = references_to_resume(config, resume_from)
        is_new = resume_from is None
        experiment = build_experiment(config, device, is_new, record, references=references)
        trainer = build_trainer(config, experiment)
        if options.dry_run:
            print(dry_run(trainer), end="")
            return 0
        if resume_from is not None:
            refuse_changed_data(experiment, resume_from, options.allow_change)
        check(trainer)
        begin(trainer, files)
        with open_run(trainer, config, resume_from, options.allow_change) as run:
            trainer.train(run)
    return 0


if __name__ == "__main__":
    run(main)
