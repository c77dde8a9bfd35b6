"""Train a model: ``python train.py -c config/digits.yaml``; ``-r`` resumes a run."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

try:
    from base.config.command_line import choose_config, parse_train, run
    from base.distributed.launch import start_processes
except ImportError as error:  # a package is missing, or pytorch-template's base/ replaced ours
    sys.exit(f"{error}: install requirements.txt, and keep Kindling's own base/ and logger/")


def main(arguments: Sequence[str]) -> int:
    """Parse, load, build, run."""
    options = parse_train(arguments)
    if options.schema or options.list is not None or options.is_sweep:
        return answer(options)
    config, resume_from = choose_config(options)
    if options.print_config:
        print(config.describe(), end="")
        return 0
    alone = f"--check {options.check}" if options.check else None
    code = start_processes(options.device or config["device"], arguments, alone)
    if code is not None:  # of the processes that trained
        return code

    # Errors in the structure of the config are reported by now, before torch is imported.
    from base.distributed import join_processes
    from base.names.check import check_names
    from base.run import (
        build_experiment,
        build_trainer,
        check,
        check_ranks,
        choose_device,
        hash_code_at_start,
        make_repeatable,
        open_run,
        record_to_resume,
        references_to_resume,
        refuse_changed_data,
        resume_together,
        try_out,
        write_deferred_files,
    )
    from base.system.deferred_files import defer_files
    from base.system.seeding import seed_everything
    from logger.console import mute_other_ranks, setup_logging

    setup_logging(None, config["trainer"]["verbosity"])
    # Errors name their place in the config file; nothing is written before the run begins.
    with config.placed(), defer_files(bool(options.dry_run or options.check)) as files:
        check_names(config)
        make_repeatable(config)
        device = choose_device(options.device or config["device"])
        seed_everything(config["seed"])
        # The others may start later, when files have changed.
        hashes, world = (
            hash_code_at_start(),
            join_processes(config["distributed"]["timeout"], device.type),
        )
        mute_other_ranks(world.rank)
        with world.reports_errors():
            resume_from = resume_together(resume_from, world)
            experiment = build_experiment(
                config,
                device,
                weights=resume_from is None,
                record=record_to_resume(config, resume_from, world),
                references=references_to_resume(config, resume_from, world),
                world=world,
            )
            experiment.share_with(world)
            trainer = build_trainer(config, experiment)
            check_ranks(experiment, world, hashes)
            if options.dry_run or options.check:
                return try_out(trainer, options.check, options.output, resume_from)
            if resume_from is not None:
                refuse_changed_data(experiment, resume_from, options.allow_change)
            check(trainer)
            write_deferred_files(trainer, files)
            with open_run(trainer, config, resume_from, options.allow_change) as run:
                trainer.train(run)
    return 0


def answer(options: Namespace) -> int:
    """Do what is not one training: run a sweep, or show the names or the schema."""
    if options.is_sweep:
        from base.sweeps import run_sweep

        return run_sweep(options)
    from base.names.listing import show_names

    return show_names(None if options.schema else options.list)


if __name__ == "__main__":
    run(main)
