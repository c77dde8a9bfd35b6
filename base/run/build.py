"""Builds what a checked config names: data, model, losses, optimizers, the trainer."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from base.base_model import check_model
from base.checkpoint.data_record import record_of, use_record
from base.checkpoint.weight_mapping import WeightsReport
from base.checkpoint.weights import (
    load_pretrained,
    load_timm,
    sections_of_timm,
    sections_with_weights,
)
from base.config import Config
from base.config.durations import RunLength
from base.config.normal_form import optimizer_keys, optimizer_sections
from base.config.tree import dotted
from base.data.bad_samples import BadSamples
from base.data.batch import SampleCount, cut, inputs_of, to_device
from base.data.sampler_state import SamplerState
from base.distributed.group import ALONE, World, world_size
from base.distributed.launch import KNOWN, device_of_rank, devices_of, fewer_than_n_gpu
from base.distributed.shard import shard_model
from base.errors import CheckpointError, ConfigError, KindlingError, UsageError, listed
from base.names.construction import build
from base.names.exclusions import check_combinations, layout_wish
from base.names.object_references import References, refuse_objects
from base.names.registry import find
from base.network.batch_norm import synchronize_batch_norm
from base.network.compilation import uses_cuda_graphs
from base.network.freezing import Freezing, last_layers
from base.network.initialization import InitRecord, initialise
from base.network.layers import NoForward
from base.network.layout import prepare_model
from base.network.patterns import NoMatch
from base.network.shape_errors import explain_shape_errors
from base.run.loaders import (
    batches_in_epoch,
    build_loaders,
    build_test_loader,
    check_sampler,
    defer_loaders,
)
from base.run.model_data import resolve_normalize, warn_of_other_statistics
from base.run.rank_checks import match_weights
from base.run.trainer_sections import build_section
from base.system.determinism import use_deterministic_algorithms, why_not_deterministic
from base.system.processes import rank
from base.system.resources import use_threads
from base.system.seeding import derive_seed, isolated_random_state
from base.system.torch_compat import keep_freed_memory, put_off_dynamo
from base.training.experiment import CallbackProtocol, Experiment, choose_monitor
from base.training.losses import WeightedLoss, build_losses
from base.training.metric_defaults import compares_outputs
from base.training.metrics import build_metrics
from base.training.optimizer_memory import offload_state
from base.training.parameter_groups import build_optimizer, check_ownership
from base.training.precision import choose_precision
from base.training.schedules import Schedule, build_schedule, resolve_monitor
from base.training.swa import SwaSchedule, start_step, swa_schedule

log = logging.getLogger("kindling")


KEPT_GRADIENTS = {
    ("memory", "accumulate"): 1,
    ("memory", "micro_batch"): None,
    ("memory", "set_to_none"): True,
    ("trainer", "on_oom"): "stop",
}
"""What does not keep gradients from one backward pass to the next."""


@dataclass
class Data:
    """The loaders of an experiment; lazy layers take their shapes from a batch of ``example``."""

    train_loader: Any
    valid_loader: Any
    batches_per_epoch: int
    example: Any
    test_loader: Any = None
    sampler_state: SamplerState | None = None


def choose_device(name: str) -> torch.device:
    """Return the device of this process, of those that ``-d`` names.

    torchrun's processes take the GPU of their number; a single process takes the first of several.

    Raises:
        UsageError: this machine has no such device, or torchrun's variables are incomplete.
    """
    world_size()
    if rank() is None:
        names = devices_of(name)
        chosen = names[0]
        if len(names) == 1 and (fewer := fewer_than_n_gpu(name, names)):
            log.info(fewer)
    else:
        chosen = device_of_rank(name)
    if chosen == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(chosen)
    except RuntimeError as error:
        raise UsageError(f"-d {name}: no such device; {KNOWN}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        n = torch.cuda.device_count()
        raise UsageError(f"-d {name}: there are {n} CUDA devices here; use `-d auto` or `-d cpu`")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("-d mps: Metal is not available here; use `-d auto` or `-d cpu`")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # for all that names no device, from now on
    return device


def make_repeatable(config: Config) -> None:
    """Set the number of threads, and deterministic algorithms as the config says.

    Call it before `choose_device`, which may start CUDA.
    """
    config.resolve("threads", value=use_threads(config["threads"]))
    use_deterministic_algorithms(config["deterministic"])
    torch.backends.cudnn.benchmark &= not config["deterministic"]


def resolve_precision(config: Config, device: torch.device) -> list[str]:
    """Replace ``memory.precision: auto`` by the precision for this device; return a note.

    The run's config keeps the result, so that a run resumed on another device computes as before.
    """
    if config["memory"]["precision"] != "auto":
        return []
    name, reason = choose_precision(device)
    config.resolve("memory", "precision", value=name)
    return [f"{name} (auto: {reason})"]


def build_experiment(
    config: Config,
    device: torch.device,
    weights: bool = True,
    record: Mapping[str, Any] | None = None,
    data: Data | None = None,
    references: References | None = None,
    world: World = ALONE,
) -> Experiment:
    """Build data, model, losses, metrics, optimizers and schedules.

    Args:
        weights: whether to load ``model.weights``; a resumed run restores its own.
        record: statistics of the training data to use, which are computed without it.
        data: the loaders to use instead of those of a training.
        references: the references of a resumed run to built objects.
        world: the processes among which ``distributed.strategy: fsdp`` divides the model.

    Raises:
        ConfigError: names the place of each argument that does not fit.
    """
    n_processes = world_size()
    check_combinations(config, n_processes)
    put_off_dynamo()
    keep_freed_memory(device)
    if text := why_not_deterministic(device):
        raise ConfigError([config.problem(("deterministic",), text)])
    bad_samples = BadSamples(config)
    references = References(config) if references is None else references
    precision_notes = resolve_precision(config, device)
    resolve_normalize(config)
    if data is None:
        data = build_training_data(config, device, bad_samples, record or {}, references)
    model, init_records = build_model(config, data.example, references)
    loaded = load_weights(config, model) if weights else {}
    if loaded:
        warn_of_other_statistics(config, data.example)
    memory = config["memory"]
    length = RunLength.from_config(config, data.batches_per_epoch)

    with isolated_random_state(derive_seed(config["seed"], "loss")):
        wants_losses = data.sampler_state is not None and data.sampler_state.wants_losses
        losses = build_losses(
            references.resolve_list("loss", "loss"),
            length,
            rules=config["batch"],
            needs_sample_losses=wants_losses,
        )
    for loss in losses.values():
        loss.to(device)
    if n_processes > 1 and config["distributed"]["sync_batch_norm"]:
        model = synchronize_batch_norm(model, device)
    if world.is_active and config["distributed"]["strategy"] == "fsdp":
        divide_model(config, model, world, device)
    freezing = build_freezing(config, model, length)
    model.to(device)
    check_cuda_graphs(config, device)
    # A few samples: with a whole batch, memory would decide, and another layout gives other bits.
    forward = functools.partial(call_once, config, data.example, device, n_samples=2)
    layout = layout_wish(config, n_processes)
    memory_notes = prepare_model(model, {**memory, "channels_last": layout}, device, forward)
    optimizers, schedules = build_optimizers(
        config, model, references, freezing, losses, data.valid_loader, length, device
    )
    check_ownership(model, optimizers, freezing.frozen_until)
    freezing.begin_epoch(0)  # after the optimizers, which own parameters frozen for a time too
    check_first_step(config, optimizers, freezing)

    return Experiment(
        config=config,
        device=device,
        model=model,
        losses=losses,
        metrics=build_metrics(
            references.resolve_list("metric", "metrics"),
            losses=losses,
            has_outputs=compares_outputs(config),
            rules=config["batch"],
        ),
        optimizers=optimizers,
        schedules=schedules,
        train_loader=data.train_loader,
        valid_loader=data.valid_loader,
        test_loader=data.test_loader,
        sampler_state=data.sampler_state,
        callbacks=build_callbacks(config, references),
        batches_per_epoch=data.batches_per_epoch,
        length=length,
        freezing=freezing,
        bad_samples=bad_samples,
        init_records=init_records,
        loaded=loaded,
        memory_notes=[*precision_notes, *memory_notes],
        own_references=references,
        build_section=build_section,
    )


def build_trainer(config: Config, experiment: Experiment) -> Any:
    """Build the trainer of an experiment."""
    section = experiment.references.resolve("trainer", ("trainer",), config["trainer"])
    return build("trainer", section, where=config.where("trainer"), experiment=experiment)


def build_training_data(
    config: Config,
    device: torch.device,
    bad_samples: BadSamples,
    record: Mapping[str, Any],
    references: References,
) -> Data:
    """Build the training and the validation loader."""
    _use_decoder(record)
    train_loader, valid_loader = build_loaders(config, references)
    bad_samples.watch(train_loader, "train")
    bad_samples.watch(valid_loader, "valid")
    if record.keys() != {"decoder"}:  # other data, whose statistics are their own
        use_record(train_loader, record)
    if config["valid_data_loader"] is not None:
        use_record(valid_loader, record_of(train_loader))
    for loader in (train_loader, valid_loader):
        getattr(loader, "place_on", lambda _: None)(device)
    n_batches = batches_in_epoch(config, train_loader)
    sampler_state = getattr(train_loader, "sampler_state", None)
    if sampler_state is not None:
        check_sampler(config, train_loader, n_batches)
    if config["test_data_loader"] is not None:
        # The test loader is built after training; its references to training data are resolved now.
        references.resolve("data_loader", ("test_data_loader",), config["test_data_loader"])
    return Data(train_loader, valid_loader, n_batches, train_loader, sampler_state=sampler_state)


def _use_decoder(record: Mapping[str, Any]) -> None:
    """Choose the decoder of a run before a cache is filled; a new run has the fastest one."""
    from base.datasets.images import use_decoder  # imports Pillow

    use_decoder(record.get("decoder"))


def build_test_data(config: Config, data: Mapping[str, Any], references: References | None) -> Data:
    """Build the test loader; the others are built on first use.

    Args:
        data: the record of the data in the tested checkpoint, see `write_data_record`.
    """
    _use_decoder(data["record"])
    references = References(config) if references is None else references
    train_loader, valid_loader = defer_loaders(config, data["n_batches"], references)
    references.add("data_loader", train_loader)
    references.add("valid_data_loader", valid_loader)
    test_loader = build_test_loader(config, data["record"], references)
    n_batches = data["batches_per_epoch"]
    return Data(train_loader, valid_loader, n_batches, test_loader, test_loader)


def build_model(
    config: Config, example: Any, references: References | None = None
) -> tuple[nn.Module, list[InitRecord]]:
    """Build the model and initialise it by the rules of the config.

    Args:
        example: the loader; lazy layers take their shapes from its first batch.
    """
    references = References(config) if references is None else references
    section = references.resolve("model", ("model",), config["model"])
    model: nn.Module = build("model", section, where=config.where("model"))
    references.add("model", model)
    try:
        check_model(model)
    except ValueError as error:
        raise ConfigError([config.problem(("model",), str(error))]) from error
    if any(is_lazy(parameter) for parameter in (*model.parameters(), *model.buffers())):
        infer_shapes(config, model, example)
    return model, initialise(model, _init_rules(config, references), find, config.problem)


def _init_rules(config: Config, references: References) -> list[Mapping[str, Any]]:
    """Return the rules of ``init:`` with their references resolved."""
    return [
        {
            name: part
            if name in ("match", "preset")
            else references.resolve("init", ("init", number, name), part)
            for name, part in rule.items()
        }
        for number, rule in enumerate(config["init"])
    ]


def call_once(
    config: Config,
    loader: Any,
    device: torch.device,
    model: nn.Module,
    n_samples: int | None = None,
) -> Any:
    """Call a model on the first batch of a loader, or on some samples of it if it can be cut."""
    batch = next(loader.batches(0, 1))
    if n_samples is not None:
        with suppress(KindlingError):
            n_read = SampleCount(config["batch"], loader)(batch, 0)
            batch = cut(batch, 0, min(n_samples, n_read), n_read)
    batch = to_device(batch, device)
    args, kwargs = inputs_of(batch, config["batch"])
    return model(*args, **kwargs)


def infer_shapes(config: Config, model: nn.Module, example: Any) -> None:
    """Initialise lazy layers with the shapes of the first batch of a loader."""
    with isolated_random_state(config["seed"]), torch.no_grad(), explain_shape_errors(model):
        try:
            call_once(config, example, torch.device("cpu"), model.eval())
        except NoForward as error:
            text = (
                f"{error}; its lazy layers cannot infer their shapes from a batch: set their sizes"
            )
            raise ConfigError([config.problem(("model",), text)]) from error
    model.train()
    named = (*model.named_parameters(), *model.named_buffers())
    left = [name for name, value in named if is_lazy(value)]
    if left:
        text = f"{', '.join(left[:5])}: no shape, as the first batch did not reach it: set sizes"
        raise ConfigError([config.problem(("model",), text)])


def load_weights(config: Config, model: nn.Module) -> dict[str, WeightsReport]:
    """Load the ``weights:`` of the model and of its networks; return a report for each."""
    loaded: dict[str, WeightsReport] = {}
    for prefix, section in sections_with_weights(config["model"]):
        names = [name for part in prefix.split(".") if part for name in ("args", part)]
        try:
            loaded[prefix] = load_pretrained(model.get_submodule(prefix), section)
        except (CheckpointError, NoMatch, AttributeError) as error:
            problem = config.problem(("model", *names, "weights"), str(error))
            raise ConfigError([problem]) from error
    for prefix, args in sections_of_timm(config["model"]):
        names = [name for part in prefix.split(".") if part for name in ("args", part)]
        key = "pretrained" if args.get("pretrained") else "weights"
        try:
            report = load_timm(model.get_submodule(prefix), args)
        except (KindlingError, AttributeError) as error:
            problem = config.problem(("model", *names, "args", key), str(error))
            raise ConfigError([problem]) from error
        if report is not None and prefix in loaded:
            text = "`weights:` of the section loads a file already: remove one of them"
            raise ConfigError([config.problem(("model", *names, "args", key), text)])
        if report is not None:
            loaded[prefix] = report
    return loaded


def divide_model(config: Config, model: nn.Module, world: World, device: torch.device) -> None:
    """Divide the parameters of a model, which are the same on all ranks, over them."""
    match_weights({**dict(model.named_parameters()), **dict(model.named_buffers())}, world)
    try:
        shard_model(model, config["distributed"]["shard"] or None, world, device.type)
    except NoMatch as error:
        problem = config.problem(("distributed", "shard"), str(error))
        raise ConfigError([problem]) from error


def check_cuda_graphs(config: Config, device: torch.device) -> None:
    """Check that no gradients are kept from one replay of a CUDA graph to the next.

    Raises:
        ConfigError: ``memory.compile`` uses them, and gradients are kept.
    """
    if not uses_cuda_graphs(config["memory"]["compile"], device):
        return
    mode = config["memory"]["compile"]
    text = f"cannot be combined with memory.compile: {mode} ({config.where('memory', 'compile')})"
    text += " on a GPU, whose graphs overwrite kept gradients: use `compile: default`"
    found = [
        config.problem(keys, text)
        for keys, wanted in KEPT_GRADIENTS.items()
        if config[keys[0]][keys[1]] != wanted
    ]
    if found:
        raise ConfigError(found)


def build_freezing(config: Config, model: nn.Module, length: RunLength) -> Freezing:
    """Freeze parameters by the rules of the config."""
    try:
        return Freezing(model, config["freeze"], length)
    except NoMatch as error:
        raise ConfigError([config.problem(("freeze",), str(error))]) from error


def check_first_step(
    config: Config, optimizers: Mapping[str, Optimizer], freezing: Freezing
) -> None:
    """Check that some optimizer has a parameter to train at the first step.

    Raises:
        ConfigError: ``freeze:`` excludes all of them for a time.
    """
    groups = [group for one in optimizers.values() for group in one.param_groups]
    if any(parameter.requires_grad for group in groups for parameter in group["params"]):
        return
    until = " or ".join(dict.fromkeys(freezing.frozen_until.values()))
    layers = listed(last_layers(dict(freezing.model.named_parameters())))
    text = f"no parameter is left to train: all are frozen until {until}. The model ends with"
    text += f" {layers}: let `match` leave out what is trained from the start"
    raise ConfigError([config.problem(("freeze",), text)])


def build_optimizers(
    config: Config,
    model: nn.Module,
    references: References,
    freezing: Freezing,
    losses: Mapping[str, WeightedLoss],
    valid_loader: Any,
    length: RunLength,
    device: torch.device,
) -> tuple[dict[str, Optimizer], dict[str, Schedule | SwaSchedule]]:
    """Build the optimizers and their schedules by name."""
    optimizers: dict[str, Optimizer] = {}
    schedules: dict[str, Schedule] = {}
    for name, section in optimizer_sections(config).items():
        keys = optimizer_keys(config, name)
        optimizers[name] = build_optimizer(
            model,
            references.resolve("optimizer", keys, {**section, "lr_scheduler": None}),
            dotted(keys),
            freezing.frozen_until,
            config["memory"]["fused"],
        )
        if config["memory"]["offload_optimizer"]:
            offload_state(optimizers[name], device)
        keys = optimizer_keys(config, name, "lr_scheduler")
        scheduler = section["lr_scheduler"]
        if scheduler is not None:
            scheduler = references.resolve("lr_scheduler", keys, scheduler)
            refuse_objects(scheduler, dotted(keys))
            rule = choose_monitor(config, valid_loader)
            scheduler = resolve_monitor(config, keys, scheduler, rule, losses)
        schedule = build_schedule(optimizers[name], scheduler, length, dotted(keys))
        if schedule is not None:
            schedules[name] = schedule
    swa = config["trainer"]["swa"]
    if swa is not None:
        _check_swa(config, swa, length)
        if swa["lr"] is not None:
            (name, optimizer), *_ = optimizers.items()
            of_run = swa_schedule(optimizer, schedules.get(name), swa, length)
            return optimizers, {name: of_run}
    return optimizers, dict(schedules)


def _check_swa(config: Config, section: Mapping[str, Any], length: RunLength) -> None:
    """Raise ConfigError if ``trainer.swa`` would never begin, or has one rate for several."""
    keys = ("trainer", "swa")
    if (start := start_step(section, length)) > length.total_steps:
        text = f"the average begins after step {start}, and training ends after "
        problem = config.problem((*keys, "start"), f"{text}step {length.total_steps}")
        raise ConfigError([problem])
    n_optimizers = len(optimizer_sections(config))
    if section["lr"] is not None and n_optimizers > 1:
        text = f"one rate cannot fit {n_optimizers} optimizers: remove it, and give each its own"
        raise ConfigError([config.problem((*keys, "lr"), f"{text} `lr_scheduler`")])
    if section["anneal"] is not None and section["lr"] is None:
        text = "it is the way to the rate `lr`, which is not given: add it, or remove this"
        raise ConfigError([config.problem((*keys, "anneal"), text)])


def build_callbacks(config: Config, references: References) -> dict[str, CallbackProtocol]:
    """Build the callbacks by name."""
    callbacks: dict[str, CallbackProtocol] = {}
    for number, section in enumerate(references.resolve_list("callback", "callbacks")):
        if section["type"] in callbacks:
            problem = config.problem(
                ("callbacks", number), f"{section['type']} is listed twice: remove one"
            )
            raise ConfigError([problem])
        where = config.where("callbacks", number)
        callbacks[section["type"]] = build("callback", section, where=where)
    return callbacks
