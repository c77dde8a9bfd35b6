"""The schema of a config: the valid values, default and description of every key."""

from __future__ import annotations

import re
from typing import Any

from base.config.durations import DURATION_PATTERN, MINUTES_PATTERN, parse_duration
from base.config.fields import (
    ABSENT,
    REQUIRED,
    SAME_AS_TYPE,
    Either,
    Field,
    Key,
    ListOf,
    OneOrNamed,
    Scalar,
    Section,
)
from base.config.tree import show


def check_folder_name(text: Any) -> None:
    """Raise a ValueError unless the text is a valid name for a single folder."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError("expected a name for the run's folder")
    if text in (".", "..") or "/" in text or "\\" in text or not text.isprintable():
        raise ValueError(
            f"{text[:60]!r} is not a valid name for a single folder (no '/', '\\', '..')"
        )
    if len(text.encode()) > 200:
        raise ValueError("a name has at most 200 bytes")


def check_monitor(text: Any) -> None:
    """Raise a ValueError unless the text is 'off', 'min NAME' or 'max NAME'."""
    if not isinstance(text, str) or not re.fullmatch(r"off|(min|max) +\S.*", text):
        raise ValueError("expected 'min NAME', 'max NAME' (such as 'max valid/accuracy') or 'off'")


def loader_key(name: str) -> str:
    """Return the loader section that a key such as `val_loader` stands for, or ''."""
    word = name.lower().replace("_", "").replace("-", "")
    part = "(train|training|valid|val|validation|test|testing)"
    found = re.fullmatch(f"{part}?(?:data)?loader", word)
    found = found or re.fullmatch(f"(?:data)?loader{part}", word)
    if found is None:
        return ""
    sections = {"val": "valid_data_loader", "tes": "test_data_loader"}
    return sections.get((found[1] or "")[:3], "data_loader")


def check_pattern(value: Any) -> None:
    """Raise a ValueError unless the value is a valid pattern (`base/network/patterns.py`)."""
    for part in value if isinstance(value, list) and value else [value]:
        is_match = isinstance(part, dict) and list(part) == ["type"]
        names = part["type"] if is_match else part
        names = names if is_match and isinstance(names, list) and names else [names]
        if not all(isinstance(name, str) and name for name in names):
            forms = "'head.*', 're:...', {type: Conv2d}, or a list of these"
            raise ValueError(f"expected a pattern ({forms}), found {show(value)}")


def check_interval(text: Any) -> None:
    """Raise a ValueError unless the text is a duration or a time in minutes."""
    parse_duration(text, with_time=True)


def choice(*names: str) -> Scalar:
    """Return a field that accepts one of a few words."""
    return Scalar(f"one of {', '.join(names)}", {"type": "string", "enum": list(names)})


def whole(low: int, high: int = 2**63 - 1) -> Scalar:
    """Return a field that accepts an integer in a range."""
    limits = f"of at least {low}" if high == 2**63 - 1 else f"from {low} to {high}"
    schema = {"type": "integer", "minimum": low, "maximum": high}
    return Scalar(f"a whole number {limits}", schema)


def whole_or_auto(what: str, high: int = 2**63 - 1) -> Scalar:
    """Return a field that accepts a positive integer or 'auto'."""
    schema = {"type": ["integer", "string"], "minimum": 1, "maximum": high, "pattern": "^auto$"}
    return Scalar(what, schema)


def switch_or(*names: str) -> Scalar:
    """Return a field that accepts true, false or one of a few words."""
    schema = {"type": ["boolean", "string"], "enum": [True, False, *names]}
    return Scalar(f"one of true, false, {', '.join(names)}", schema)


TEXT = Scalar("text", {"type": "string", "minLength": 1})
FOLDER = Scalar("a name", {"type": "string", "minLength": 1}, check_folder_name)
MONITOR = Scalar("a monitor", {"type": "string", "pattern": "^(off|(min|max) )"}, check_monitor)
DURATION = Scalar("a duration", {"type": "string", "pattern": DURATION_PATTERN}, parse_duration)
INTERVAL = Scalar(
    "a duration or minutes",
    {"type": "string", "pattern": f"{DURATION_PATTERN}|{MINUTES_PATTERN}"},
    check_interval,
)
SWITCH = Scalar("true or false", {"type": "boolean"})
COUNT = whole(1)
NUMBER = Scalar("a number", {"type": "number"})
POSITIVE = Scalar("a number above 0", {"type": "number", "exclusiveMinimum": 0})
SECONDS = Scalar("a number of seconds, at least 1", {"type": "number", "minimum": 1})
SHARE = Scalar("a number between 0 and 1", POSITIVE.schema | {"exclusiveMaximum": 1})
POSITION = Scalar("a name or a position", {"type": ["string", "integer"]})
PATTERN = Scalar("a pattern", {"type": ["string", "array", "object"]}, check_pattern)
PATTERNS = ListOf(PATTERN, single=True)
INIT_PRESETS = (
    *("kaiming", "xavier", "orthogonal", "truncated_normal"),
    *("zero_last_norm", "from_model"),
)
ANYTHING = Field()
OPEN = Section({}, others=ANYTHING)


def named(kind: str, *short: str, **more: Key) -> Section:
    """Return a section with `type`, `args` and further keys. A single word is the type."""
    keys = {
        "type": Key(TEXT, REQUIRED, f"Name of the {kind.replace('_', ' ')}: yours or torch's."),
        "args": Key(OPEN, {}, "Its arguments."),
    }
    return Section(keys | more, short=("string", *short), names=kind)


INIT_RULE = Section(
    {
        "match": Key(PATTERN, "*", "The parameters or modules that the rule applies to."),
        "preset": Key(choice(*INIT_PRESETS), ABSENT, "Name of a predefined scheme."),
    },
    short=("string",),
    short_key="preset",
    others=named("init", "number"),
)
FREEZE_RULE = Section(
    {
        "match": Key(PATTERN, REQUIRED, "The parameters that are not trained."),
        "until": Key(DURATION, None, "Train them after this time."),
    },
    short=("string", "array"),
    short_key="match",
)
GROUP_RULE = Section(
    {
        "match": Key(PATTERN, "*", "The parameters that the rule applies to."),
        "preset": Key(choice("no_decay"), ABSENT, "No weight decay on biases and norm layers."),
        "freeze": Key(SWITCH, ABSENT, "Do not train these parameters."),
    },
    short=("string",),
    short_key="preset",
    others=ANYTHING,
)
WEIGHTS = Section(
    {
        "file": Key(TEXT, REQUIRED, "A file of weights, or a run or checkpoint of Kindling."),
        "strip": Key(ListOf(TEXT, single=True), [], "Prefixes to remove from the file's names."),
        "rename": Key(
            Section({}, others=TEXT), {}, "Patterns of names in the file, and their replacements."
        ),
        "only": Key(PATTERNS, [], "Load only these parameters and buffers."),
        "skip": Key(PATTERNS, [], "Do not load these."),
        "on_shape_mismatch": Key(choice("error", "skip"), "error", "What to do if shapes differ."),
    },
    short=("string",),
    short_key="file",
)

LR_SCHEDULER = named(
    "lr_scheduler",
    every=Key(choice("epoch", "step"), "epoch", "When the scheduler steps."),
    monitor=Key(TEXT, None, "What ReduceLROnPlateau watches: 'max valid/accuracy'."),
    warmup=Key(DURATION, None, "Raise the learning rate from near 0 over this time first."),
)

_OPTIMIZER_KEYS = {
    "param_groups": Key(ListOf(GROUP_RULE), [], "Rules {match, freeze, any argument}; later win."),
    "layer_decay": Key(SHARE, None, "The learning rate of each layer, relative to the next one."),
    "clip_norm": Key(POSITIVE, None, "Scale gradients down to this norm."),
    "clip_value": Key(POSITIVE, None, "Clip each gradient to this absolute value."),
}
_PARAMS = "The parameters that it trains."
OPTIMIZER = named("optimizer", params=Key(PATTERN, "*", _PARAMS), **_OPTIMIZER_KEYS)
_OPTIMIZER_KEYS["every"] = Key(DURATION, "1 step", "Interval between its steps.")
_OPTIMIZER_KEYS["lr_scheduler"] = Key(LR_SCHEDULER, None, "Schedule of its learning rate.")
OPTIMIZERS = Section(
    {}, others=named("optimizer", params=Key(PATTERN, REQUIRED, _PARAMS), **_OPTIMIZER_KEYS)
)

RAMP = Section(
    {
        "from": Key(NUMBER, 0.0, "The factor at the start."),
        "to": Key(NUMBER, 1.0, "The factor at the end."),
        "over": Key(DURATION, "100%", "The time between them."),
        "after": Key(DURATION, None, "The time before the factor starts to change."),
        "shape": Key(choice("linear", "cosine", "step"), "linear", "How it changes."),
    }
)
LOSS = named(
    "loss",
    weight=Key(Either(NUMBER, RAMP), 1.0, "Its weight in the sum."),
    output=Key(POSITION, None, "The model output that it uses."),
    target=Key(POSITION, None, "The item of the batch, or of its target, that it uses."),
    name=Key(TEXT, SAME_AS_TYPE, "Its name in logs."),
)
METRIC = named(
    "metric",
    output=Key(POSITION, None, "The prediction that it uses."),
    target=Key(POSITION, None, "The item of the batch, or of its target, that it uses."),
    name=Key(TEXT, SAME_AS_TYPE, "Its name in logs."),
    over=Key(choice("batch", "epoch"), "batch", "Call a function per batch or per epoch."),
)

MODEL = named("model", weights=Key(WEIGHTS, None, "Where its weights come from."))
BATCH_SIZE = Section(
    {
        "item": Key(POSITION, REQUIRED, "The item, by its key or its position."),
        "dim": Key(whole(0), 0, "The dimension with one entry for each sample."),
    }
)
BATCH = Section(
    {
        "inputs": Key(
            ListOf(POSITION, single=True), None, "Items of a batch that the model takes."
        ),
        "target": Key(
            OneOrNamed(POSITION, {"batch": "'batch' is the whole batch; give another name"}),
            None,
            "Items of a batch that losses and metrics use as targets.",
        ),
        "size": Key(
            Either(POSITION, BATCH_SIZE), None, "Item of a batch with one entry per sample."
        ),
        "ids": Key(SWITCH, False, "Add the index of each sample in the data set to batches."),
        "weight": Key(
            POSITION, None, "The weight of each sample: an item of a batch, or of the data set."
        ),
    }
)

CAPTURE_RULE = Section(
    {
        "match": Key(PATTERN, "*", "The modules, or for `parameters` the parameters, to record."),
        "of": Key(
            choice("activations", "gradients", "parameters"),
            "activations",
            "The values to record.",
        ),
        "record": Key(
            ListOf(choice("scalars", "histograms", "images"), single=True),
            ["scalars"],
            "The formats of a record.",
        ),
        "every": Key(DURATION, "100 steps", "Time between two records."),
    },
    short=("string", "array"),
    short_key="match",
)

MICRO_BATCH = whole_or_auto("a number of samples, 'auto' or null")
BAD_SAMPLES = Scalar(
    "a share such as 0.1%, or a number of samples",
    {"type": ["integer", "string"], "minimum": 1, "pattern": r"^[0-9]{1,2}(\.[0-9]{1,9})?%$"},
)
THREADS = whole_or_auto("a number of threads up to 1024, or 'auto'", 1024)
COMPILE = switch_or("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
AUTO = switch_or("auto")
MEMORY = Section(
    {
        "precision": Key(
            choice("fp32", "tf32", "bf16", "fp16", "auto"),
            "fp32",
            "Number format to compute in; auto: bf16 where the device is fast at it.",
        ),
        "accumulate": Key(COUNT, 1, "Batches per optimizer step."),
        "prefetch": Key(whole(0), 2, "Number of batches to copy to a GPU in advance."),
        "micro_batch": Key(MICRO_BATCH, None, "Split batches into parts of this many samples."),
        "checkpoint_activations": Key(PATTERNS, [], "Modules to recompute in the backward pass."),
        "offload_activations": Key(SWITCH, False, "Keep saved activations in CPU memory."),
        "offload_optimizer": Key(SWITCH, False, "Keep its state in CPU memory between steps."),
        "optimizer_in_backward": Key(SWITCH, False, "Step and free each gradient during backward."),
        "inplace": Key(SWITCH, False, "Let activations overwrite their inputs where that is safe."),
        "set_to_none": Key(SWITCH, True, "Free gradients after a step; false sets them to 0."),
        "channels_last": Key(AUTO, "auto", "Keep images with the channels innermost."),
        "fused": Key(AUTO, "auto", "Use the optimizer's fused kernels."),
        "compile": Key(COMPILE, False, "Compile the model with torch.compile, in this mode."),
        "cudnn_benchmark": Key(SWITCH, False, "Benchmark cuDNN's algorithms and use the fastest."),
        "empty_cache": Key(DURATION, None, "Interval for freeing unused GPU memory."),
    }
)

DISTRIBUTED = Section(
    {
        "strategy": Key(
            choice("auto", "data_parallel", "fsdp"),
            "auto",
            "Whole model on each process (auto), or parts of its weights on each: fsdp.",
        ),
        "shard": Key(PATTERNS, [], "Modules that fsdp gathers and frees as a unit."),
        "timeout": Key(
            SECONDS, 120, "Seconds to wait for a process in a step; 10 times as long between steps."
        ),
        "overlap": Key(SWITCH, True, "Sum gradients over processes during the backward pass."),
        "sync_batch_norm": Key(
            SWITCH, False, "Compute BatchNorm's statistics over all processes; CUDA only."
        ),
        "rank_logs": Key(SWITCH, False, "Write log-rankN.txt for the other processes too."),
    }
)

WRITERS = ("tensorboard", "csv", "wandb", "trackio", "mlflow")
WRITER = Section(
    {
        "type": Key(choice(*WRITERS), REQUIRED, "Which service or file."),
        "args": Key(OPEN, {}, "Its arguments, such as wandb's `project`."),
    },
    short=("string",),
)
EMA = Section(
    {"decay": Key(SHARE, 0.999, "Weight of the old average at each step.")},
    short=("number",),
    short_key="decay",
)

SWA = Section(
    {
        "start": Key(DURATION, "75%", "The first weights of the average are those after this."),
        "every": Key(DURATION, "1 epoch", "Time between two weights of the average."),
        "lr": Key(POSITIVE, None, "Constant learning rate from the start on; null: no change."),
        "anneal": Key(DURATION, None, "Time in which the rate moves to this constant."),
        "shape": Key(choice("cosine", "linear"), "cosine", "How it moves."),
    },
    short=("string",),
    short_key="start",
)

TRAINER = Section(
    {
        "type": Key(TEXT, "Trainer", "Name of the trainer class."),
        "args": Key(OPEN, {}, "Its own arguments."),
        "epochs": Key(COUNT, None, "Length of the training in epochs."),
        "steps": Key(COUNT, None, "Length of the training in steps, instead of epochs."),
        "epoch_steps": Key(COUNT, None, "Steps per epoch, if it is not one pass over the data."),
        "valid_batches": Key(COUNT, None, "Maximum number of validation batches; all by default."),
        "monitor": Key(MONITOR, None, "Criterion of the best epoch: 'max valid/accuracy', 'off'."),
        "early_stop": Key(COUNT, None, "Epochs without a new best before training ends."),
        "save_dir": Key(TEXT, "saved", "Folder of all runs."),
        "save_every": Key(INTERVAL, "1 epoch", "Time between two checkpoints; minutes too."),
        "keep": Key(whole(2), 3, "Number of recent checkpoints to keep, besides the best."),
        "async_save": Key(AUTO, "auto", "Write checkpoints in the background; auto: on a GPU."),
        "on_nonfinite": Key(
            choice("stop", "skip", "rollback"), "stop", "What to do on a non-finite loss."
        ),
        "max_nonfinite": Key(COUNT, 10, "Maximum of consecutive skips, or of rollbacks in total."),
        "on_oom": Key(choice("stop", "halve"), "stop", "What to do when memory runs out."),
        "on_bad_sample": Key(choice("stop", "skip"), "stop", "What to do on unreadable samples."),
        "max_bad_samples": Key(BAD_SAMPLES, "0.1%", "Maximum fraction or number to skip."),
        "validate_every": Key(COUNT, 1, "Epochs between two validations."),
        "log_every": Key(DURATION, "50 steps", "Time between two entries in the logs."),
        "backward": Key(
            choice("sum", "separate"), "sum", "One backward pass of the sum, or one for each loss."
        ),
        "loss_gradients": Key(
            DURATION, None, "Time between two logs of the losses' gradient norms and conflicts."
        ),
        "ema": Key(EMA, None, "Average the weights over time, and validate the average."),
        "swa": Key(
            SWA, None, "Average the weights after certain steps equally, and validate that."
        ),
        "test": Key(SWITCH, False, "Test the best model at the end."),
        "report": Key(SWITCH, True, "Write report/index.html, curves and predictions at the end."),
        "tensorboard": Key(SWITCH, True, "Write TensorBoard events."),
        "writers": Key(
            ListOf(WRITER, single=True, unique="type"),
            [],
            "Further destinations of logged values: wandb ...",
        ),
        "progress": Key(SWITCH, True, "Show a progress bar in a terminal."),
        "train_metrics": Key(SWITCH, True, "Compute the metrics on training batches too."),
        "verbosity": Key(whole(0, 2), 2, "0 shows warnings, 1 information, 2 all."),
    },
    names="trainer",
    exactly_one=("epochs", "steps"),
    never_both=("ema", "swa"),
)

PROFILE = Section(
    {
        "epochs": Key(ListOf(COUNT, single=True), [1], "Which epochs, counted from 1."),
        "steps": Key(whole(1, 1000), 20, "Steps to record in each, after 3 warmup steps."),
    }
)

ROOT = Section(
    {
        "inherit": Key(ListOf(TEXT, single=True), ABSENT, "Files that this config extends."),
        "name": Key(FOLDER, REQUIRED, "Name of the experiment, and of its folder."),
        "seed": Key(whole(0), 42, "Seed of all random number generators."),
        "deterministic": Key(SWITCH, False, "Use deterministic operations only."),
        "device": Key(
            TEXT, "auto", "'auto', 'cpu', 'cuda', 'mps', numbers such as '0,1', 'all' or 'cpu:2'."
        ),
        "threads": Key(THREADS, "auto", "Threads of torch on the CPU; auto: the free cores."),
        "model": Key(MODEL, REQUIRED, "The network; `arch` is an alias."),
        "init": Key(ListOf(INIT_RULE, single=True), [], "Rules for initial weights; later win."),
        "data_loader": Key(named("data_loader"), REQUIRED, "The training data."),
        "valid_data_loader": Key(named("data_loader"), None, "The validation data, if separate."),
        "test_data_loader": Key(named("data_loader"), None, "The test data."),
        "batch": Key(BATCH, {}, "Which parts of a batch are inputs and target."),
        "optimizer": Key(OPTIMIZER, None, "The optimizer."),
        "lr_scheduler": Key(LR_SCHEDULER, None, "The learning rate schedule."),
        "optimizers": Key(OPTIMIZERS, None, "Several optimizers by name, each with params."),
        "loss": Key(ListOf(LOSS, single=True, unique="name"), [], "The losses to minimize."),
        "metrics": Key(ListOf(METRIC, unique="name"), [], "The metrics to compute."),
        "freeze": Key(ListOf(FREEZE_RULE, single=True), [], "Parameters that are not trained."),
        "capture": Key(ListOf(CAPTURE_RULE, single=True), [], "What to record of modules."),
        "memory": Key(MEMORY, {}, "Options that save memory and time."),
        "distributed": Key(DISTRIBUTED, {}, "How several processes train one model, by torchrun."),
        "trainer": Key(TRAINER, REQUIRED, "Length, saving and reports of the training."),
        "callbacks": Key(
            ListOf(named("callback")), [], "Callbacks, called at four points of a run."
        ),
        "profile": Key(PROFILE, None, "Profile some steps."),
        "extra": Key(OPEN, {}, "Your own values."),
    },
    aliases={"arch": "model"},
    meant_by=loader_key,
    exactly_one=("optimizer", "optimizers"),
    never_both=("lr_scheduler", "optimizers"),
)
