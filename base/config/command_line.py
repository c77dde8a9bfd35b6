"""The command lines of the entry scripts. This module does not import torch."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from base.config.changes import refuse_another_run
from base.config.config import Config
from base.config.loading import load_config
from base.config.normal_form import optimizer_keys, optimizer_sections
from base.config.tree import dotted
from base.config.yaml_writer import as_source
from base.errors import (
    ConfigError,
    KindlingError,
    OutOfMemoryError,
    UsageError,
    disk_error,
    nearest,
    why,
)
from base.system.cores import watch_cores
from base.system.places import ENGINE, PROJECT
from base.system.processes import await_report, is_silent, rank
from base.system.run_folder import (
    SAVE_DIR,
    STAMP,
    current_job,
    find_newest_run,
    find_run,
    is_sweep,
    missing_folder_error,
    run_folder_of,
)
from base.system.signals import ENDS_WITH_ERROR, exit_now, resume_command
from base.system.trial import end_with_sweep
from logger.files import FileError

SHORT_FORMS = {
    "lr": "optimizer.args.lr",
    "bs": "data_loader.args.batch_size",
    "epochs": "trainer.epochs",
    "seed": "seed",
    "name": "name",
}

SWEEP_OPTIONS = ("samples", "jobs", "sampler", "pruner")
NOT_IN_SWEEPS = ("print-config", "allow-change", "check")
CHECKS = ("lr", "overfit")

TRAIN_EXAMPLES = """examples:
  python train.py -c config/digits.yaml --bs 64 --set model.args.width=64
  python train.py -r                                      resume the newest run
  python train.py -r width=64 --epochs 40                 train it for longer
  python train.py -c config/digits.yaml --check lr       suggest a rate
  python train.py -c config/digits.yaml -d 0,1            train on two GPUs
  torchrun --nproc-per-node 2 train.py -c config/digits.yaml        the same
  python train.py -c config/digits.yaml --sweep model.args.width=16,32,64

exit codes: 0 success; 1 failure, the last checkpoint stays valid; 2 an error in
the config or the command; 3 out of memory or disk space; 130, 143 interrupted
by Ctrl-C or SIGTERM, and saved.
SIGUSR1 saves a checkpoint and continues."""

TEST_EXAMPLES = """examples:
  python test.py -r saved/digits                  the newest run of that name
  python test.py -r saved/digits/20261129-064611_max_lr=3e-3
  python test.py -r 064611                        the run with this in its path
  python test.py -r 064611/checkpoints/step-00000220"""

PREDICT_EXAMPLES = """examples:
  python predict.py -r saved/flowers images               all images in a folder
  python predict.py -r saved/flowers "new/*.jpg" -o new.csv --top-k 3
  python predict.py -r saved/cars cars.csv -o prices.csv  a table
  python predict.py -r saved/roads images -o masks        masks as PNG files
  python predict.py -r saved/digits digits.npz:images     arrays

Without -o, a terminal shows the first rows, and a pipe gets all of them as CSV.

exit codes: 0 success; 1 some files could not be read: they are listed, the others
are predicted; 2 an error in the command, or nothing could be read; 3 out of memory
or disk space."""

EXPORT_EXAMPLES = """examples:
  python export.py -r saved/digits -o digits.pt2          for torch.export.load
  python export.py -r -o digits.onnx --preprocessing      takes uint8 images, returns probabilities
  python export.py -r -o digits.safetensors               the weights, with classes and statistics
  python export.py -r saved/digits_dcgan -o generator.onnx --module generator

exit codes: 0 written and compared with the model; 1 the file differs from the
model, so it was removed; 2 an error in the command, or a model that cannot be
exported; 3 out of disk space."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors name the nearest option and are raised as UsageError."""

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        _, unknown, words = message.partition("unrecognized arguments: ")
        hint = nearest(words.split()[0].partition("=")[0], known) if unknown else ""
        command = f"python {self.prog.removeprefix('python ')}"
        raise UsageError(f"{self.prog}: {message}{hint}; see `{command} --help`")


def _parser(
    prog: str, description: str, epilog: str, devices: str = "", has_config: bool = True
) -> Parser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog, None, description, epilog, formatter_class=layout, allow_abbrev=False)
    if has_config:
        text = "the experiment's config"
        parser.add_argument("-c", "--config", type=Path, metavar="FILE", help=text)
    parser.add_argument(
        "-d", "--device", metavar="DEVICE",
        help=f"auto (default), cpu, cuda, mps, or a GPU's number{devices}",
    )  # fmt: skip
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change values of the config: --set trainer.epochs=3 model.args.width=16",
    )  # fmt: skip
    return parser


def parse_train(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the arguments of train.py.

    Raises:
        UsageError: unknown options, or neither a config nor a run to resume.
    """
    text = "Train a model from a config file, or resume a run."
    several = "; for several processes, 0,1 (one on each of these GPUs), all (one on each GPU) or "
    parser = _parser("train.py", text, TRAIN_EXAMPLES, f"{several}cpu:2 (two on the CPU)")
    parser.add_argument(
        "-r", "--resume", nargs="?", const="newest", metavar="PATH",
        help="resume a run, or one of its checkpoints, by its path or any unique part of it "
        "(lr=1e-3); a name's folder means its newest run, and no PATH the newest run (of the "
        "config's name, with -c); `auto` resumes the newest run if "
        "there is one, and otherwise starts a new one. The run's config is used, or that of -c "
        "with the state of the run",
    )  # fmt: skip
    parser.add_argument(
        "--allow-change", action="store_true",
        help="with -r: resume even if the config would make it a different run; the split stays",
    )  # fmt: skip
    for name, key in SHORT_FORMS.items():
        parser.add_argument(f"--{name}", metavar="VALUE", help=f"short for --set {key}=VALUE")
    _add_sweep(parser)
    show = parser.add_argument_group("instead of training")
    show.add_argument(
        "--print-config", action="store_true", help="print each value with its origin"
    )
    show.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, try a batch, print tables; write nothing",
    )
    show.add_argument(
        "--check", metavar="KIND",
        help="lr: try rising learning rates and suggest one (lr:NAME for one of several "
        "optimizers); overfit: learn one batch by heart, or say what stands in the way; write "
        "nothing in the folder of runs",
    )  # fmt: skip
    show.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="the picture of --check lr (default: in the folder for temporary files)",
    )  # fmt: skip
    show.add_argument(
        "--list", nargs="?", const="all", metavar="KIND",
        help="list names that a config can use: of one kind (model, loss, metric ...) or of all",
    )  # fmt: skip
    show.add_argument(
        "--schema", action="store_true", help="print the JSON Schema that editors complete with"
    )
    options = parser.parse_args(arguments)
    for name, key in SHORT_FORMS.items():
        value = getattr(options, name)
        if value is not None:
            options.overrides.append(f"{key}={value}")
    _check_check(parser, options)
    needs_config = options.list is None and not options.schema
    if needs_config and options.config is None and options.resume is None:
        parser.error("give a config with -c FILE, or a run to resume with -r")
    _check_sweep(parser, options)
    return options


def _add_sweep(parser: Parser) -> None:
    sweep = parser.add_argument_group("several runs with other settings (docs/sweeps.md)")
    sweep.add_argument(
        "--sweep", nargs="+", action="extend", metavar="KEY=VALUES",
        help="train once for each combination: --sweep lr=1e-4,1e-3 model.args.width=16,32; or "
        "draw from ranges: 'lr=1e-4..1e-1 log', width=16..256. -r FOLDER resumes the sweep",
    )  # fmt: skip
    sweep.add_argument(
        "--samples", type=_at_least_one, metavar="N", help="try N random combinations"
    )
    sweep.add_argument(
        "--jobs", type=_at_least_one, metavar="N", help="trials at once, each on a GPU of its own"
    )
    sweep.add_argument(
        "--sampler", metavar="NAME", help="grid, random, or one of Optuna's: tpe, gp, qmc ..."
    )
    sweep.add_argument(
        "--pruner", metavar="NAME", help="stop bad trials early: Optuna's median, hyperband ..."
    )


def _check_sweep(parser: Parser, options: argparse.Namespace) -> None:
    """Check that the options of a sweep go together; set ``options.is_sweep``."""
    resumed = options.resume is not None and options.resume not in ("newest", "auto")
    options.is_sweep = bool(options.sweep) or (resumed and is_sweep(options.resume))
    given = [name for name in SWEEP_OPTIONS if getattr(options, name) is not None]
    if given and not options.is_sweep:
        parser.error(f"--{given[0]} belongs to a sweep: add --sweep KEY=VALUES")
    excluded = [name for name in NOT_IN_SWEEPS if vars(options).get(name.replace("-", "_"))]
    if options.is_sweep and excluded:
        parser.error(f"--{excluded[0]} concerns one run: omit --sweep")
    if options.sweep and resumed:
        parser.error("a resumed sweep keeps its keys: omit --sweep")
    if options.sweep and options.config is None:
        parser.error("--sweep needs a config: give it with -c FILE")


def _check_check(parser: Parser, options: argparse.Namespace) -> None:
    """Refuse an unknown check, and options that do not belong to it."""
    kind, _, name = (options.check or "").partition(":")
    if options.check is not None and (kind not in CHECKS or (name and kind != "lr")):
        known = f"{nearest(kind, CHECKS)} (there are {' and '.join(CHECKS)})"
        parser.error(f"--check {options.check}: no such check{known}")
    if options.check is not None and (options.dry_run or options.print_config):
        parser.error("--check trains for some steps: give it without --dry-run, --print-config")
    if options.output is not None and kind != "lr":
        parser.error("-o FILE is the picture of `--check lr`")
    if options.output is not None and options.output.suffix != ".png":
        parser.error(f"-o {options.output}: the picture is a PNG file: name it `*.png`")
    if options.output is not None and not options.output.parent.is_dir():
        parser.error(f"-o {options.output}: there is no folder {options.output.parent}")


def parse_test(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the arguments of test.py."""
    text = "Evaluate a run's best checkpoint on its test data; write report/test.json."
    parser = _parser("test.py", text, TEST_EXAMPLES)
    parser.add_argument(
        "-r", "--resume", nargs="?", const="newest", default="newest", metavar="PATH",
        help="the run, or one of its checkpoints, by its path or any unique part of it "
        "(lr=1e-3); a name's folder means its newest run, and no PATH the newest run (of the "
        "config's name, with -c). With -c, the data sections of that "
        "config are used",
    )  # fmt: skip
    return parser.parse_args(arguments)


def parse_predict(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the arguments of predict.py."""
    text = "Predict files with the best checkpoint of a run. No training data are needed."
    parser = _parser("predict.py", text, PREDICT_EXAMPLES, has_config=False)
    parser.add_argument(
        "files", nargs="+", metavar="FILES",
        help='images, folders, patterns such as "new/*.jpg", or a CSV or text file of paths; a '
        "CSV file for a run trained on a table; an npz, npy or IDX file of arrays",
    )  # fmt: skip
    parser.add_argument(
        "-r", "--resume", default="newest", metavar="PATH",
        help="the run, or one of its checkpoints; a name's folder means its newest run; by "
        "default the newest run of all",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=Path, metavar="PATH",
        help="a .csv or .tsv file for the rows, an .npz file for arrays, or a folder for masks",
    )  # fmt: skip
    parser.add_argument(
        "--masks", type=Path, metavar="FOLDER", help="where to write masks, with -o for the rows"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument(
        "--top-k", type=_at_least_one, default=1, metavar="K", help="name the K likeliest classes"
    )
    parser.add_argument(
        "--threshold", type=_share, metavar="P",
        help="the probability from which a label, or the second of two classes, is chosen (0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--tta", choices=("flip", "five_crop", "multi_crop"),
        help="average the predictions for views of each image: mirrored, five crops, or both",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=_at_least_one, metavar="N", help="samples at a time (as in training)"
    )
    return parser.parse_args(arguments)


def parse_export(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the arguments of export.py."""
    text = "Write the model of a run as a file that works without Kindling, and a model card."
    parser = _parser("export.py", text, EXPORT_EXAMPLES, has_config=False)
    parser.add_argument(
        "-r", "--resume", nargs="?", const="newest", default="newest", metavar="PATH",
        help="the run, or one of its checkpoints; a name's folder means its newest run, and no "
        "PATH the newest run. Of a run, the best checkpoint is used",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE",
        help="*.pt2 (torch.export), *.onnx, or *.safetensors, *.pt, *.pth (weights)",
    )  # fmt: skip
    parser.add_argument(
        "--preprocessing", action="store_true",
        help="put what prepares the validation data into the graph, and probabilities at its end",
    )  # fmt: skip
    parser.add_argument(
        "--module", metavar="NAME", help="export a part of the model, such as generator"
    )
    parser.add_argument(
        "--input-shape", type=shape_of, metavar="C,H,W",
        help="the shape of a sample, if the run does not record it",
    )  # fmt: skip
    parser.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, default=None,
        help="averaged or trained weights (default: averaged, if the run has them)",
    )  # fmt: skip
    parser.add_argument("--opset", type=int, metavar="N", help="the version of ONNX's operators")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.set_defaults(device="cpu")  # a graph holds the device on which it was traced
    return parser.parse_args(arguments)


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1, not {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        if 0 <= (value := float(text)) <= 1:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"a probability from 0 to 1, not {text!r}")


def shape_of(text: str) -> list[int]:
    """Read the shape of a sample: ``3,224,224``."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers above 0, such as 3,224,224")
    return list(map(int, parts))


def choose_config(options: argparse.Namespace) -> tuple[Config, Path | None]:
    """Load the config that the options ask for; return it and the checkpoint or run to resume.

    Raises:
        ConfigError: lists all faults in the config.
        UsageError, CheckpointError: the run does not exist.
    """
    config = None
    if options.config is not None:
        config = _load(options.config, options)
    if options.resume is None:
        assert config is not None  # checked by parse_train
        return config, None

    resume_from = find_resumed(options.resume, config, options.overrides)
    if config is None and resume_from is None:
        raise UsageError("-r auto: there is no run yet; give a config with -c to start one")
    if config is None:
        assert resume_from is not None
        config = _load(run_folder_of(resume_from) / "config.yaml", options)
    if resume_from is not None and not options.allow_change:
        refuse_another_run(config, run_folder_of(resume_from))
    return config, resume_from


def _load(path: Path, options: argparse.Namespace) -> Config:
    """Load a config with the options applied. If --lr is ambiguous, the error lists the choices."""
    try:
        return load_config(path, options.overrides)
    except ConfigError:
        if options.lr is not None:
            lr = f"{SHORT_FORMS['lr']}={options.lr}"
            others = [override for override in options.overrides if override != lr]
            config = load_config(path, others)
            places = [dotted(optimizer_keys(config, name)) for name in optimizer_sections(config)]
            if "optimizer" not in places:
                choices = " or ".join(f"--set {place}.args.lr={options.lr}" for place in places)
                raise UsageError(f"--lr: {path} has several optimizers; use {choices}") from None
        raise


def choose_tested(options: argparse.Namespace) -> tuple[Config, Path]:
    """Return the config of the run to test, and the run or checkpoint.

    With ``-c``, the data and batch sections come from that config, everything else from the run's.
    """
    other = None if options.config is None else load_config(options.config)
    path = choose_run(options, other)
    overrides = list(options.overrides)
    if other is not None:
        swapped = ("data_loader", "valid_data_loader", "test_data_loader", "batch")
        overrides += [f"{key}={json.dumps(as_source(other[key]))}" for key in swapped]
    return load_config(run_folder_of(path) / "config.yaml", overrides), path


def choose_run(options: argparse.Namespace, config: Config | None = None) -> Path:
    """Return the run or checkpoint that ``-r`` means.

    Raises:
        UsageError: it does not exist.
    """
    path = find_resumed(options.resume, config, options.overrides)
    if path is None:
        raise UsageError("-r auto: there is no run yet; train one first")
    return path


def find_resumed(wanted: str, config: Config | None, overrides: Sequence[str] = ()) -> Path | None:
    """Return the run or checkpoint that ``-r`` means, or None if ``auto`` finds none.

    Without a config, the overrides may give the run's name and folder.

    Raises:
        UsageError: no run to resume exists.
    """
    given = {key: value for key, _, value in (text.partition("=") for text in overrides)}
    if config is not None:
        given = {"name": config["name"], "trainer.save_dir": config["trainer"]["save_dir"]}
    save_dir, name = Path(given.get("trainer.save_dir", SAVE_DIR)), given.get("name")
    if wanted not in ("newest", "auto"):
        try:
            return find_run(wanted, save_dir)
        except OSError as error:
            raise UsageError(f"-r {wanted}: cannot search for runs: {why(error)}") from error
    try:
        newest = find_newest_run(save_dir, name, current_job() if wanted == "auto" else None)
    except OSError as error:
        raise UsageError(f"-r: cannot search for runs: {why(error)}") from error
    if newest is None and wanted == "newest":
        which = f"{save_dir / name}" if name else f"{save_dir}"
        raise UsageError(f"-r: no run with a checkpoint in {which}; give one with -r PATH")
    return newest


class Terminated(KeyboardInterrupt):
    """SIGTERM outside training: resources are released, as for Ctrl-C."""

    number = signal.SIGTERM


def end_by_signals() -> None:
    """Make SIGINT and SIGTERM raise an exception until training handles them.

    SIGUSR1, which requests a checkpoint, is ignored, as there is nothing to save yet. A worker
    forked while a signal to its parent is pending exits.
    """
    mine = os.getpid()

    def handle(number: int, _: object) -> None:
        if os.getpid() != mine:
            os._exit(128 + number)
        if number == signal.SIGTERM and ENDS_WITH_ERROR.is_set():
            return  # the error that ends this process is on its way
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored in a background job
            signal.signal(number, handle)
    if hasattr(signal, "SIGUSR1"):  # not on Windows
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _explain(error: FileError) -> KindlingError:
    """Return the error to print when a file of a run cannot be written."""
    path = Path(str(error.filename))
    run = next((each for each in path.parents if (each / STAMP).is_file()), None)
    missing = [each for each in path.parents if not each.is_dir()]
    if missing:
        return missing_folder_error(missing[-1])
    text = why(error)
    if run is not None and any((run / "checkpoints").glob("step-*")):
        text += f"; its checkpoints are intact; resume by: {resume_command(run)}"
    return disk_error(error, text)


def _reader_has_left() -> bool:
    """Return whether stdout is a pipe whose reader has closed it, as `... | head` does."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _is_of_engine(error: ImportError) -> bool:
    """Return whether an import between files of ``base/`` or ``logger/`` failed."""
    file = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    is_ours = any(file.is_relative_to(each) for each in (ENGINE, PROJECT / "logger"))
    return is_ours and (error.name or "").partition(".")[0] in ("base", "logger")


def _as_known(error: Exception) -> KindlingError | None:
    """Return the error to print for an exception, or None if its traceback is printed."""
    if isinstance(error, FileError):
        return _explain(error)
    if isinstance(error, ImportError) and _is_of_engine(error):
        return UsageError(f"{error}: keep Kindling's own base/ and logger/, whole")
    if "torch" in sys.modules and not isinstance(error, OutOfMemoryError):
        from base.system.resources import is_out_of_memory

        if is_out_of_memory(error):
            return _lack_of_memory(error)
    return error if isinstance(error, KindlingError) else None


def _lack_of_memory(error: Exception) -> OutOfMemoryError:
    """Return the error to print for a lack of memory that is not that of a step."""
    if isinstance(error, KindlingError):  # it names the place
        made = OutOfMemoryError(str(error))
        vars(made).update(vars(error))
        return made
    cause = str(error).strip().partition("\n")[0][:200]
    calls = traceback.extract_tb(error.__traceback__)
    own = [call for call in calls if "site-packages" not in call.filename] or calls
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
    text = f"out of memory outside of a step, in {where} ({own[-1].name}): use a smaller model or a"
    return OutOfMemoryError(f"{text} device with more memory, or free what others hold ({cause})")


def report(error: KindlingError) -> None:
    """Print an error; of several processes that raise it, one does."""
    prefix = await_report(error)
    if prefix is not None:
        lines = filter(None, (error.trace.rstrip(), f"{prefix}{error}", error.advice))
        print("\n".join(lines), file=sys.stderr, flush=True)


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run an entry script. A KindlingError prints its message and exits with its code.

    So does a `FileError`. Any other OSError comes from user code and prints a traceback. Of several
    processes, one prints what all raise.
    """
    if sys.stdout is None:  # closed by the parent process: `>&-`
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (till the end)
    watch_cores()
    end_by_signals()
    end_with_sweep()
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        sys.unraisablehook = lambda _: None  # partly constructed objects may fail to close
        number = error.number if isinstance(error, Terminated) else signal.SIGINT
        if not is_silent():
            text = f"stopped by {signal.Signals(number).name}, nothing more was saved"
            print(text, file=sys.stderr)
        exit_now(128 + number)
    except BrokenPipeError:
        if not _reader_has_left():  # a user's pipe
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        known = _as_known(error)
        if known is None:
            sys.stderr.write(await_report(error) or "")  # in front of the traceback
            if rank() is None:
                raise
            traceback.print_exc()
            exit_now(1)
        report(known)
        code = known.exit_code
    if rank() is None:
        sys.exit(code)
    exit_now(code)
