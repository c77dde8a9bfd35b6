"""Kindling on one NVIDIA GPU: the tests marked ``gpu``, then measurements, in under 8 minutes.

    python benchmarks/gpu.py [--budget 450] [--only tests,waits,speed] [--out gpu.json]

Each finding is one line of JSON; all of them are in the file ``--out`` too. Each section runs in a
process of its own, as an error of CUDA ends its process, and has a share of the budget (seconds):
cases that no longer fit are left out, and say so. ``--tiny`` runs the same on a CPU with toy sizes:
a test of this script, whose figures mean nothing.

- waits: how often a step waits for the GPU, and at which line; the goal is 0.
- speed: a step of Kindling and of a bare loop with the same settings; the goal is 1.02.
- cifar: an epoch of config/cifar10_fast.yaml, on synthetic images of the size of CIFAR-10.
- resume: the last checkpoint of a whole run and of a resumed one, by their bits.
- memory: what each option saves (peak of allocated memory) and costs (milliseconds a step).
- feeding: data on the GPU, against data in CPU memory, copied ahead or in turn.
- save: how long training waits for a checkpoint, and `torch.save` of the same state.
- tests: the tests marked ``gpu``, in what is left.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from base.base_trainer import BaseTrainer
from base.checkpoint.store import CheckpointStore, read
from base.config import load_config
from base.datasets.pipeline import TransformedDataset
from base.names.check import check_names
from base.run import build_experiment, make_repeatable
from base.run.micro_batch import resolve_micro_batch
from base.system.seeding import seed_everything
from base.training.run_log import Run
from trainer.trainer import Trainer

AUGMENTED = (
    "data_loader.args.transforms=[{type: RandomShift, args: {pixels: 4}}, RandomFlip, "
    "{type: RandomCutout, args: {pixels: 8}}]"
)
BF16 = "memory.precision=bf16"
WAIT = "called a synchronizing CUDA operation"
MOST_SECONDS = 20.0  # that a case may take before its measurement, for the full number of rounds
GRACE_SECONDS = 8.0  # for a case in progress when the time of its section is over
TINY_CIFAR = ["model.args.layers=[{type: ResNet9, args: {width: 4, whitens: true}}]"]
GPU_MARK = "pytest.mark" + ".gpu"


class Sizes:
    """The sizes of the measurements: for a GPU, or tiny."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self.n_samples, self.batch_size = (25_600, 512) if on_gpu else (64, 16)
        self.n_rounds = 5 if on_gpu else 1
        width, depth, patch = (512, 8, 4) if on_gpu else (16, 2, 16)
        network = "resnet18" if on_gpu else "ResNet9"
        args = "num_classes: 10" if on_gpu else "width: 4"
        self.resnet = f"""
name: gpu
model: {{type: {network}, args: {{{args}}}}}
data_loader:
  type: DatasetLoader
  args:
    dataset: {{type: SyntheticDataset, args: {{n_samples: {self.n_samples}, shape: [3, 32, 32]}}}}
    batch_size: {self.batch_size}
    drop_last: true
optimizer: {{type: SGD, args: {{lr: 0.05, momentum: 0.9}}}}
loss: cross_entropy
trainer:
  {{epochs: 50, tensorboard: false, progress: false, verbosity: 0, log_every: 1000 steps,
   monitor: "off", report: false}}
"""
        transformer = (
            f"{{type: TransformerClassifier, args: {{image_size: 32, patch_size: {patch}, "
            f"in_channels: 3, width: {width}, depth: {depth}, n_heads: 4, dropout: 0.0}}}}"
        )
        self.transformer = self.resnet.replace(
            f"{{type: {network}, args: {{{args}}}}}", transformer
        ).replace("{type: SGD, args: {lr: 0.05, momentum: 0.9}}", "{type: AdamW, args: {lr: 1e-3}}")


class Bench:
    """The sections, what they found, and the time that is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.sizes = Sizes(torch.cuda.is_available() and not options.tiny)
        self.began, self.budget, self.out = time.monotonic(), options.budget, Path(options.out)
        self.folder = Path(tempfile.mkdtemp(prefix="kindling_gpu_"))
        self.found: list[dict[str, Any]] = []
        self.longest = 0.0  # case of this process, in seconds

    @property
    def left(self) -> float:
        return self.budget - (time.monotonic() - self.began)

    def tell(self, section: str, **facts: Any) -> None:
        """Print a finding, and write all of them: the machine may be taken away at any time."""
        self.found.append({"section": section, **facts})
        print(json.dumps(self.found[-1], default=str), flush=True)
        self.write()

    def write(self) -> None:
        """Write all findings, whole: the process may be killed meanwhile."""
        part = self.out.with_name(f"{self.out.name}.part")
        part.write_text(json.dumps(self.found, indent=1, default=str), encoding="utf-8")
        part.replace(self.out)

    def has_time(self, section: str, case: str) -> bool:
        """Return whether the longest case so far would fit; else note that this one is left out."""
        if self.left < self.longest:
            self.tell(section, case=case, left_out="out of time")
        return self.left >= self.longest

    @contextlib.contextmanager
    def reported(self, section: str, **facts: Any) -> Iterator[None]:
        """Note an error of a case, and go on with the next; free its memory."""
        began = time.monotonic()
        try:
            yield
        except Exception as error:
            where = traceback.format_exc()[-1200:]
            self.tell(section, **facts, failed=f"{type(error).__name__}: {error}"[:600], at=where)
        self.longest = max(self.longest, time.monotonic() - began)
        gc.collect()
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
        if self.sizes.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def make(self, text: str, *overrides: str) -> BaseTrainer:
        """Build a trainer as train.py does."""
        config = load_config(None, [f"trainer.save_dir={self.folder}", *overrides], text=text)
        with config.placed():
            check_names(config)
            make_repeatable(config)
            seed_everything(config["seed"])
            return Trainer(build_experiment(config, self.sizes.device))

    def synchronize(self) -> None:
        if self.sizes.on_gpu:
            torch.cuda.synchronize()

    def epoch(self, trainer: BaseTrainer) -> float:
        """Train one epoch by Kindling's loop; return seconds a step, the GPU's work included."""
        self.synchronize()
        began, steps = time.perf_counter(), trainer.progress.step
        trainer.train_epoch()
        self.synchronize()
        spent = (time.perf_counter() - began) / (trainer.progress.step - steps)
        trainer.progress.start_next_epoch()
        for sums in (trainer.meters, *trainer.metrics.values()):
            sums.reset()
        return spent

    def bare(self, text: str, overrides: Sequence[str]) -> Callable[[], float]:
        """Return a plain loop over the same model, optimizer, precision and data on the device."""
        twin, device = self.make(text, *overrides), self.sizes.device
        images = twin.train_loader.dataset.reads_from.images.to(device)
        targets = twin.train_loader.dataset.reads_from.targets.to(device)
        (optimizer,) = twin.optimizers.values()
        optimizer._optimizer_step_pre_hooks.clear()  # with which Kindling leaves out bad steps
        model, size, precision = twin.model, self.sizes.batch_size, twin.precision
        model.train()

        def run() -> float:
            self.synchronize()
            order = torch.randperm(len(images), device=device)
            began, n_steps = time.perf_counter(), len(images) // size
            for number in range(n_steps):
                chosen = order[number * size : (number + 1) * size]
                with precision.autocast():
                    outputs = model(images[chosen].float().mul_(1 / 255))
                loss = F.cross_entropy(outputs.float(), targets[chosen])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.synchronize()
            return (time.perf_counter() - began) / n_steps

        return run

    # --- Sections ---------------------------------------------------------------------------------

    def tests(self) -> None:
        marked = sorted(p for p in (ROOT / "tests").rglob("test_*.py") if GPU_MARK in p.read_text())
        words = ("-v", "--tb=short", "-m", "gpu", "--no-header", "-p", "no:cacheprovider")
        log = self.folder / "tests.txt"
        code: int | str
        with log.open("w") as out:
            command = [sys.executable, "-m", "pytest", *words, *map(str, marked)]
            try:
                limit = max(10, self.left - 5)
                done = subprocess.run(
                    command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, timeout=limit,
                    check=False,
                )  # fmt: skip
                code = done.returncode
            except subprocess.TimeoutExpired:
                code = "out of time"
        text = log.read_text(errors="replace")
        verdicts = ("PASSED", "FAILED", "ERROR", "SKIPPED")
        counts = {word: len(re.findall(rf"^\S+::.* {word}\b", text, re.M)) for word in verdicts}
        failures = sorted(set(re.findall(r"^(?:FAILED|ERROR) .*", text, re.M)))[:40]
        end = "" if code == 0 else text[-4000:]
        self.tell("tests", code=code, **counts, failures=failures, end=end)

    def waits(self) -> None:
        cases = {
            "default": ["metrics=[accuracy]"],
            "bf16, clip, ema": [BF16, "optimizer.clip_norm=1.0", "trainer.ema={decay: 0.99}"],
            "augmented, normalized": [AUGMENTED, "data_loader.args.normalize=imagenet"],
            "F1": ["metrics=[{type: F1}]"],
            "on_nonfinite skip": ["trainer.on_nonfinite=skip"],
            "accumulate 4": ["memory.accumulate=4"],
            **({"fp16": ["memory.precision=fp16"]} if self.sizes.on_gpu else {}),
        }
        for name, overrides in cases.items():
            if not self.has_time("waits", name):
                continue
            with self.reported("waits", case=name):
                trainer = self.make(self.sizes.resnet, *overrides)
                self.epoch(trainer)
                steps = trainer.progress.step
                lines, n_events, n_after = self._counted_waits(trainer)
                n = trainer.progress.step - steps
                by_line = {line: round(count / n, 2) for line, count in lines.most_common(8)}
                self.tell(
                    "waits", case=name, steps=n, a_step=round(sum(lines.values()) / n, 2),
                    by_line=by_line, waits_for_events_a_step=round(n_events / n, 2),
                    at_the_end_of_the_epoch=n_after,
                )  # fmt: skip

    def _counted_waits(self, trainer: BaseTrainer) -> tuple[collections.Counter[str], int, int]:
        """Train an epoch; return how often its steps waited for the GPU by line, how often for an
        event (of a loss, if the host is more than two batches ahead), and the waits after them.
        """
        n_events, plain = 0, getattr(torch.cuda.Event, "synchronize", None)
        n_of_steps: list[int] = []
        summarise = trainer._summarise

        def summed_up(*args: Any) -> Any:  # the end of the epoch, which reads its means
            n_of_steps.append(len(waits()))
            return summarise(*args)

        def waits() -> list[warnings.WarningMessage]:
            return [one for one in caught if str(one.message).startswith(WAIT)]

        def counted(event: Any) -> None:
            nonlocal n_events
            n_events += 1
            plain(event)  # type: ignore[misc]

        with warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as stack:
            warnings.simplefilter("always")
            if self.sizes.on_gpu:
                torch.cuda.Event.synchronize = counted  # type: ignore[assignment, method-assign]
                stack.callback(setattr, torch.cuda.Event, "synchronize", plain)
                torch.cuda.set_sync_debug_mode("warn")
                stack.callback(torch.cuda.set_sync_debug_mode, "default")
            vars(trainer)["_summarise"] = summed_up
            stack.callback(vars(trainer).pop, "_summarise")
            trainer.train_epoch()
        n = n_of_steps[-1]
        lines = collections.Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waits()[:n])
        return lines, n_events, len(waits()) - n

    def speed(self) -> None:
        resnet, transformer = self.sizes.resnet, self.sizes.transformer
        cases: dict[str, tuple[str, list[str]]] = {
            "ResNet-18 bf16": (resnet, [BF16]),
            "ResNet-18 fp32": (resnet, []),
            "transformer bf16": (transformer, [BF16]),
            "ResNet-18 bf16 compiled": (resnet, [BF16, "memory.compile=true"]),
            "transformer bf16 compiled": (transformer, [BF16, "memory.compile=true"]),
            "transformer bf16 reduce-overhead":
                (transformer, [BF16, "memory.compile=reduce-overhead"]),
            "ResNet-18 bf16 batch 32": (resnet, [BF16, "data_loader.args.batch_size=32"]),
            "ResNet-18 bf16 cudnn_benchmark": (resnet, [BF16, "memory.cudnn_benchmark=true"]),
            "ResNet-18 bf16 without channels_last": (resnet, [BF16, "memory.channels_last=false"]),
            "ResNet-18 tf32": (resnet, ["memory.precision=tf32"]),
        }  # fmt: skip
        for name, (text, overrides) in cases.items():
            is_compiled = "memory.compile" in " ".join(overrides)
            if (self.sizes.on_gpu or not is_compiled) and self.has_time("speed", name):
                with self.reported("speed", case=name):
                    self._measure_speed(name, text, overrides)

    def _measure_speed(self, name: str, text: str, overrides: list[str]) -> None:
        began = time.perf_counter()
        trainer = self.make(text, *overrides)
        self.epoch(trainer)
        first = time.perf_counter() - began
        words = " ".join(overrides)
        other = None
        if "batch_size" not in words and "accumulate" not in words:
            other = self.bare(text, overrides)
            other()
        ours, theirs = [], []
        spent = time.perf_counter() - began
        for _ in range(self.sizes.n_rounds if spent < MOST_SECONDS else 3):
            ours.append(self.epoch(trainer))
            theirs += [other()] if other else []
        pairs = sorted(k / b for k, b in zip(ours, theirs, strict=False))
        self.tell(
            "speed", case=name, kindling_ms=milliseconds(ours), bare_ms=milliseconds(theirs),
            ratio=round(statistics.median(pairs), 3) if pairs else None,
            ratios=[round(each, 3) for each in pairs], first_epoch_s=round(first, 1),
            idle=round(trainer.clock.idle_share(), 2),
        )  # fmt: skip
        if self.sizes.on_gpu and name == "ResNet-18 bf16":
            self.tell("calls", case=name, a_step=self._calls_of_cuda(trainer))

    def _calls_of_cuda(self, trainer: BaseTrainer) -> dict[str, float]:
        """Return how often a step calls CUDA's functions that launch, copy or wait."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            self.epoch(trainer)
        n_steps = self.sizes.n_samples // self.sizes.batch_size
        wanted = ("Synchronize", "LaunchKernel", "MemcpyAsync")
        return {
            one.key: round(one.count / n_steps, 1)
            for one in recorded.key_averages()
            if any(word in one.key for word in wanted)
        }

    def feeding(self) -> None:
        place = TransformedDataset.place_on
        cases = {
            "on the GPU": (place, 2),
            "CPU memory, prefetch 2": (lambda *_: False, 2),
            "CPU memory, prefetch 0": (lambda *_: False, 0),
        }
        for name, (placing, prefetch) in cases.items():
            if not self.has_time("feeding", name):
                continue
            TransformedDataset.place_on = placing  # type: ignore[method-assign]
            with self.reported("feeding", case=name):
                trainer = self.make(self.sizes.resnet, BF16, f"memory.prefetch={prefetch}")
                self.epoch(trainer)
                times = [self.epoch(trainer) for _ in range(min(3, self.sizes.n_rounds))]
                shares = {part: round(s, 3) for part, s in trainer.clock.seconds.items()}
                self.tell("feeding", case=name, ms=milliseconds(times), seconds=shares)
            TransformedDataset.place_on = place  # type: ignore[method-assign]

    def memory(self) -> None:
        options = {
            "plain bf16": [],
            "fp32": ["memory.precision=fp32"],
            "checkpoint_activations": ['memory.checkpoint_activations=["re:layers[.][0-9]+"]'],
            "offload_activations": ["memory.offload_activations=true"],
            "offload_optimizer": ["memory.offload_optimizer=true"],
            "optimizer_in_backward": ["memory.optimizer_in_backward=true"],
            "micro_batch of a quarter": [f"memory.micro_batch={self.sizes.batch_size // 4}"],
            "micro_batch auto": ["memory.micro_batch=auto"],
            "set_to_none false": ["memory.set_to_none=false"],
            "fused false": ["memory.fused=false"],
            "ema": ["trainer.ema={decay: 0.99}"],
            "on_oom halve": ["trainer.on_oom=halve"],
            "on_nonfinite skip": ["trainer.on_nonfinite=skip"],
            **({"fp16": ["memory.precision=fp16"]} if self.sizes.on_gpu else {}),
        }
        of_resnet = {name: options[name] for name in ("plain bf16", "on_nonfinite skip")}
        of_resnet["inplace"] = ["memory.inplace=true"]
        for model, text, chosen in (
            ("transformer", self.sizes.transformer, options),
            ("ResNet-18", self.sizes.resnet, of_resnet),
        ):
            for name, overrides in chosen.items():
                if self.has_time("memory", name):
                    with self.reported("memory", model=model, option=name):
                        self._measure_memory(model, name, text, overrides)

    def _measure_memory(self, model: str, name: str, text: str, overrides: list[str]) -> None:
        few = f"n_samples: {8 * self.sizes.batch_size}"  # offloading copies gigabytes in a step
        text = text.replace(f"n_samples: {self.sizes.n_samples}", few)
        trainer = self.make(text, BF16, *overrides)
        resolve_micro_batch(trainer)
        self.epoch(trainer)
        if self.sizes.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        times = [self.epoch(trainer) for _ in range(min(2, self.sizes.n_rounds))]
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.sizes.on_gpu else 0.0
        notes = trainer.experiment.memory_notes
        self.tell(
            "memory", model=model, option=name, peak_mb=round(peak), ms=milliseconds(times),
            notes=notes,
        )  # fmt: skip

    def resume(self) -> None:
        few = f"n_samples: {16 * self.sizes.batch_size}"
        text = self.sizes.resnet.replace(f"n_samples: {self.sizes.n_samples}", few)
        text = text.replace("epochs: 50", "steps: 24, save_every: 10 steps, keep: 9")
        config = self.folder / "resume.yaml"
        config.write_text(text, encoding="utf-8")
        cases = {
            "bf16, augmented": [BF16, AUGMENTED],
            "deterministic": [BF16, AUGMENTED, "deterministic=true"],
            "fp32, deterministic": ["deterministic=true"],
            "deterministic, compiled": [BF16, "deterministic=true", "memory.compile=true"],
        }
        if not self.sizes.on_gpu:
            del cases["deterministic, compiled"]
        for number, (name, overrides) in enumerate(cases.items()):
            if not self.has_time("resume", name):
                continue
            with self.reported("resume", case=name):
                save = self.folder / f"resume{number}"
                self._train("-c", config, "--set", *overrides, f"trainer.save_dir={save}")
                run = next(each.parent for each in save.glob("gpu/*/checkpoints"))
                whole = read(run / "checkpoints" / "step-00000024")
                self._train("-r", run / "checkpoints" / "step-00000010")
                parts = read(run / "checkpoints" / "step-00000024")
                places = [difference(whole[part], parts[part], part) for part in whole]
                differs = [place for place in places if place]
                self.tell("resume", case=name, same_bits=not differs, differs=differs[:4])

    def _train(self, *words: str | Path) -> None:
        device = ["-d", str(self.sizes.device)]
        done = subprocess.run(
            [sys.executable, "train.py", *map(str, words), *device],
            cwd=ROOT, capture_output=True, text=True, timeout=max(20, self.left), check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr[-500:] or done.stdout[-500:])

    def save(self) -> None:
        network = "resnet50" if self.sizes.on_gpu else "ResNet9"
        text = self.sizes.resnet.replace("resnet18", network)
        text = text.replace("{lr: 0.05, momentum: 0.9}", "{lr: 1e-3}").replace("SGD", "AdamW")
        few = f"n_samples: {4 * self.sizes.batch_size}"
        text = text.replace(f"n_samples: {self.sizes.n_samples}", few)
        for name, beside in (("beside training", True), ("in turn", False)):
            if self.has_time("save", name):
                with self.reported("save", case=name):
                    self._measure_save(name, text, beside)

    def _measure_save(self, name: str, text: str, beside: bool) -> None:
        trainer = self.make(text, BF16)
        self.epoch(trainer)
        store = CheckpointStore(self.folder / f"save_{beside}", in_background=beside)
        trainer.current_run = Run(trainer.current_run.log, self.folder, store)
        waits, whole, torchs = [], [], []
        for _ in range(4):
            self.epoch(trainer)
            expected = {k: v.detach().cpu().clone() for k, v in trainer.model.state_dict().items()}
            began = time.perf_counter()
            trainer.save()
            waits.append(time.perf_counter() - began)
            self.epoch(trainer)  # what is written is of its step, though training goes on
            store.wait()
            whole.append(time.perf_counter() - began)
            state = {name: one.state_dict() for name, one in trainer.stateful.items()}
            began = time.perf_counter()
            torch.save(state, self.folder / "plain.pt")
            torchs.append(time.perf_counter() - began)
            newest = store.newest()
            assert newest is not None
            saved = read(newest)["model"]
            assert all(torch.equal(expected[key], saved[key]) for key in expected)
        self.tell(
            "save", case=name, wait_ms=milliseconds(waits), with_an_epoch_ms=milliseconds(whole),
            torch_save_ms=milliseconds(torchs), bytes=(self.folder / "plain.pt").stat().st_size,
        )  # fmt: skip

    def cifar(self) -> None:
        images = (
            "{type: SyntheticDataset, args: {n_samples: "
            f"{50_000 if self.sizes.on_gpu else 64}, shape: [3, 32, 32]}}}}"
        )
        overrides = [f"data_loader.args.{name}={images}" for name in ("dataset", "test_dataset")]
        overrides += ["trainer.verbosity=0", "trainer.progress=false", "trainer.tensorboard=false"]
        if not self.sizes.on_gpu:
            overrides += ["data_loader.args.batch_size=16", *TINY_CIFAR]
        text = (ROOT / "config" / "cifar10_fast.yaml").read_text(encoding="utf-8")
        for name, more in {"as it is": [], "not compiled": ["memory.compile=false"]}.items():
            if (self.sizes.on_gpu or more) and self.has_time("cifar", name):
                with self.reported("cifar", case=name):
                    self._measure_cifar(name, text, [*overrides, *more])

    def _measure_cifar(self, name: str, text: str, overrides: list[str]) -> None:
        began = time.perf_counter()
        trainer = self.make(text, *overrides)
        built = time.perf_counter()
        self.epoch(trainer)
        first = time.perf_counter() - built
        times = [self.epoch(trainer) for _ in range(self.sizes.n_rounds)]
        experiment = trainer.experiment
        seconds = statistics.median(times) * experiment.batches_per_epoch
        self.tell(
            "cifar", case=name, build_s=round(built - began, 1), first_epoch_s=round(first, 1),
            epoch_s=round(seconds, 3), step=milliseconds(times), epochs=experiment.n_epochs,
            run_after_compiling_s=round(experiment.n_epochs * seconds, 1),
            memory=experiment.memory_notes, idle=round(trainer.clock.idle_share(), 2),
        )  # fmt: skip


SECONDS = {
    "waits": 40, "speed": 115, "cifar": 75, "resume": 55, "memory": 40, "feeding": 20, "save": 30,
    "tests": 75,
}  # fmt: skip
"""The share of each section in a budget of 450 seconds; what one leaves is for those after it."""


def milliseconds(seconds: Sequence[float]) -> dict[str, float] | None:
    """Return the median and the range in milliseconds."""
    if not seconds:
        return None
    middle = {"median": statistics.median(seconds), "from": min(seconds), "to": max(seconds)}
    return {name: round(1e3 * value, 3) for name, value in middle.items()}


def difference(one: Any, other: Any, where: str) -> str | None:
    """Return the first place at which two states differ, or None."""
    if isinstance(one, torch.Tensor):
        if torch.equal(one, other):
            return None
        return f"{where} by {(one.double() - other.double()).abs().max().item():.3g}"
    if isinstance(one, Mapping):
        if one.keys() != other.keys():
            return f"{where}: keys"
        pairs = [(one[key], other[key], f"{where}.{key}") for key in one]
    elif isinstance(one, list | tuple):
        pairs = [(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=False))]
    else:
        return None if one == other or one != one else f"{where}: {one} and {other}"
    return next(filter(None, (difference(*pair) for pair in pairs)), None)


def run_section(name: str, options: argparse.Namespace, seconds: float, part: Path) -> list[Any]:
    """Run a section in a process of its own; return what it found, even if it was killed."""
    words = ["--only", name, "--out", part, "--budget", seconds, *["--tiny"] * options.tiny]
    command = [sys.executable, __file__, "--here", *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    how = "killed, out of time"
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            how = f"exit code {process.wait(seconds + GRACE_SECONDS)}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # and what it has started
            process.wait()
    found: list[Any] = json.loads(part.read_text(encoding="utf-8")) if part.exists() else []
    return found if how == "exit code 0" else [*found, {"section": name, "failed": how}]


def machine() -> dict[str, Any]:
    """Return the facts of the device and of torch."""
    facts: dict[str, Any] = {"device": "CPU, toy sizes"}
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        facts = {
            "device": found.name, "memory_mb": found.total_memory >> 20,
            "capability": f"{found.major}.{found.minor}", "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    python = sys.version.split()[0]
    return {**facts, "torch": torch.__version__, "cuda": torch.version.cuda, "cores": cores,
            "python": python}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=450.0, help="seconds")
    parser.add_argument("--only", default=",".join(SECONDS))
    parser.add_argument("--out", default=str(Path(os.environ.get("OUT", ".")) / "gpu.json"))
    parser.add_argument("--tiny", action="store_true", help="a test of this script, on a CPU")
    parser.add_argument("--here", action="store_true", help="run one section in this process")
    options = parser.parse_args()
    sections = options.only.split(",")
    if unknown := [name for name in sections if name not in SECONDS]:
        sys.exit(f"--only {','.join(unknown)}: there are {', '.join(SECONDS)}")
    if not torch.cuda.is_available() and not options.tiny:
        sys.exit("there is no CUDA device; --tiny tries this script on a CPU")
    bench = Bench(options)
    try:
        if options.here:
            (name,) = sections
            bench.tell("machine", of=name, **machine())
            began = time.monotonic()
            with bench.reported(name):
                getattr(bench, name)()
            bench.tell("time", of=name, seconds=round(time.monotonic() - began, 1))
            return
        for place, name in enumerate(sections):
            share = sum(SECONDS[each] for each in sections[place:])
            seconds = max(10.0, bench.left * SECONDS[name] / share - GRACE_SECONDS)
            bench.found += run_section(name, options, seconds, bench.folder / f"{name}.json")
            bench.write()
    finally:
        shutil.rmtree(bench.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
