"""``python -m base.report``: makes the report of a run again, or compares several runs."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from base.config.command_line import Parser, run
from base.config.loading import load_config
from base.errors import KindlingError, UsageError, why
from base.report.comparison import default_output, is_comparison, write_comparison
from base.report.page import write_report
from base.system.processes import refuse_several_processes
from base.system.run_folder import find_run, run_folder_of

EPILOG = """examples:
  python -m base.report saved/digits                        the newest run of that name
  python -m base.report 064611                              by a unique part of its path
  python -m base.report saved/digits/20261129-064611 saved/digits/20261129-065012_lr=1e-2

The report of one run is made again, with new predictions for the validation data if the data
are there (and for the test data if the run has been tested). Several runs give one page that
compares them; nothing is written into their folders. A comparison of the same runs is replaced;
folders of comparisons among the RUNs, as in `saved/digits/*`, are left out."""

log = logging.getLogger("kindling")


def main(arguments: Sequence[str]) -> int:
    """Write the page or pages; return the exit code."""
    options = _parse(arguments)
    refuse_several_processes("python -m base.report")
    given = [path for path in options.runs if not is_comparison(Path(path))] or options.runs
    paths = list(dict.fromkeys(find_run(path) for path in given))
    if len(paths) == 1:
        if options.output is not None:
            raise UsageError(
                "-o is the folder of a comparison; the page of one run is in its folder"
            )
        print(remake(paths[0], options.device))
        return 0
    folders = [run_folder_of(path) for path in paths]
    out = options.output or default_output(folders)
    print(write_comparison(folders, out, options.overwrite))
    return 0


def remake(path: Path, device: str | None = None) -> Path:
    """Predict again and write the page of a run; without its data, write the page from its files.

    Args:
        path: the run, or the checkpoint that predicts.
    """
    folder, note = run_folder_of(path), ""
    try:
        predict_again(path, folder, device)
    except Exception as error:  # the page can be written without it
        text = str(error) if isinstance(error, KindlingError) else why(error)
        note = f"No new predictions, the rest is from the run's files: {text}"
        log.warning("%s: %s", folder, note)
    return write_report(folder, note)


def predict_again(path: Path, folder: Path, device: str | None = None) -> None:
    """Record the predictions for the validation data, and for test data of a tested run.

    Raises:
        KindlingError: the data or the checkpoint are missing, or the data have changed.
    """
    config = load_config(folder / "config.yaml", ["trainer.report=true"])

    from base.names.check import check_names
    from base.run import (
        build_experiment,
        build_trainer,
        choose_checkpoint,
        choose_device,
        make_repeatable,
        record_to_resume,
        record_validation,
        references_to_resume,
        refuse_changed_data,
        run_test,
    )
    from base.system.seeding import seed_everything
    from logger.console import setup_logging

    with config.placed():
        check_names(config)
        make_repeatable(config)
        chosen = choose_device(device or config["device"])
        seed_everything(config["seed"])

        setup_logging(None)
        checkpoint = choose_checkpoint(path)
        experiment = build_experiment(
            config,
            chosen,
            weights=False,
            record=record_to_resume(config, checkpoint),
            references=references_to_resume(config, checkpoint),
        )
        trainer = build_trainer(config, experiment)
        if trainer.valid_loader is not None:
            refuse_changed_data(experiment, folder, allow_change=False)
            record_validation(trainer, checkpoint, folder)
        if (folder / "report" / "test.json").is_file():
            run_test(trainer, checkpoint, folder)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    text = "Make the report of a run again, or compare several runs."
    parser = Parser("python -m base.report", None, text, EPILOG, formatter_class=layout)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run, or a name's newest run")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER",
        help="where to write a comparison (by default `comparison_RUN+RUN` beside the runs)",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an index.html in the folder of -o that is no comparison",
    )
    parser.add_argument("-d", "--device", metavar="DEVICE", help="auto (default), cpu, cuda, mps")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
