"""Structure: closed sections, kinds, ranges, short forms, defaults; all faults at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from base.config import load_config
from base.config.fields import ListOf, Section
from base.config.schema import ROOT
from base.errors import ConfigError

ROOT_FOLDER = Path(__file__).parents[3]
WHOLE = {"output": None, "target": None}  # of a loss
EXTRAS = {"ids": False, "weight": None}  # of a batch


def test_the_normal_form_has_every_default(load):
    config = load()
    trainer = config["trainer"]
    assert config["model"] == {"type": "Net", "args": {}, "weights": None}
    assert (config["seed"], config["deterministic"], config["device"]) == (42, False, "auto")
    assert config["optimizer"] == {
        "type": "SGD",
        "args": {"lr": 0.1},
        "params": "*",
        "param_groups": [],
        "layer_decay": None,
        "clip_norm": None,
        "clip_value": None,
    }
    assert (trainer["epochs"], trainer["steps"], trainer["save_every"]) == (2, None, "1 epoch")
    assert (trainer["type"], trainer["keep"], trainer["verbosity"]) == ("Trainer", 3, 2)
    assert config["batch"] == {"inputs": None, "target": None, "size": None} | EXTRAS
    assert config["memory"]["precision"] == "fp32"
    assert config["distributed"] == {
        "strategy": "auto",
        "shard": [],
        "timeout": 120,
        "overlap": True,
        "sync_batch_norm": False,
        "rank_logs": False,
    }
    for name in ("loss", "metrics", "init", "freeze", "capture", "callbacks"):
        assert config[name] == []
    for name in ("lr_scheduler", "optimizers", "valid_data_loader", "test_data_loader"):
        assert config[name] is None
    assert config.extra == {}
    assert "inherit" not in config


def test_a_number_is_short_for_the_decay_of_an_average(load):
    assert load("", "trainer.ema=0.99")["trainer"]["ema"] == {"decay": 0.99}
    assert load("", "trainer.ema={}")["trainer"]["ema"] == {"decay": 0.999}


def test_short_forms_become_the_long_form(load):
    config = load(
        "loss: nll\nmetrics: [acc, {type: top, args: {k: 3}, over: epoch}]\ncallbacks: [EMA]\n"
        "init: [{match: '*', weight: ones_, bias: 0.5, theta: {type: normal_, args: {std: 1}}}]\n"
        "lr_scheduler: StepLR\nfreeze: head.*\nbatch: {inputs: image, target: 1}\nmemory:\n"
    )
    (loss,) = config["loss"]
    assert loss == {"type": "nll", "args": {}, "weight": 1.0, "name": "nll"} | WHOLE
    assert config["metrics"] == [
        {"type": "acc", "args": {}, "name": "acc", "over": "batch"} | WHOLE,
        {"type": "top", "args": {"k": 3}, "name": "top", "over": "epoch"} | WHOLE,
    ]
    assert config["callbacks"] == [{"type": "EMA", "args": {}}]
    assert config["init"] == [
        {
            "match": "*",
            "weight": {"type": "ones_", "args": {}},
            "bias": {"type": "constant_", "args": {"val": 0.5}},
            "theta": {"type": "normal_", "args": {"std": 1}},
        }
    ]
    assert config["lr_scheduler"]["every"] == "epoch"
    assert config["freeze"] == [{"match": "head.*", "until": None}]
    assert config["batch"] == {"inputs": ["image"], "target": 1, "size": None} | EXTRAS
    assert config["memory"]["accumulate"] == 1


def test_one_loss_as_a_section_is_a_list_of_one(load):
    loss = load("loss: {type: mse, weight: 2, name: pixels}\n")["loss"]
    assert loss == [{"type": "mse", "args": {}, "weight": 2, "name": "pixels"} | WHOLE]


def test_several_optimizers_take_the_place_of_one(load, faults):
    more = "optimizer: null\noptimizers:\n  g: {type: Adam, params: 'g.*', lr_scheduler: StepLR}\n"
    base = "name: a\nmodel: N\ndata_loader: L\ntrainer: {steps: 5}\n"
    config = load(more, base=base)
    assert config["optimizers"]["g"]["lr_scheduler"]["type"] == "StepLR"
    assert config["optimizer"] is None

    assert faults("optimizers: {g: Adam}\n") == [
        "x.yaml:6:14: optimizers.g.params: missing; the parameters that it trains.",
        "x.yaml:6:1: optimizers: 'optimizer' at x.yaml:4:1 and 'optimizers' at x.yaml:6:1 "
        "are mutually exclusive; keep one (null turns the other off)",
    ]
    assert "lr_scheduler" in faults(more + "lr_scheduler: StepLR\n", base=base)[0]
    assert faults(base=base) == ["x.yaml:1:1: 'optimizer' or 'optimizers' must be given"]


def test_arch_is_another_name_for_model(load, faults):
    base = "name: a\narch: {type: N}\ndata_loader: L\noptimizer: SGD\ntrainer: {steps: 5}\n"
    assert load(base=base)["model"] == {"type": "N", "args": {}, "weights": None}
    assert load("", "arch.args.x=1", base=base)["model"]["args"] == {"x": 1}
    assert faults("model: M\n", base=base) == [
        "x.yaml:2:1: 'arch' is an alias of 'model'; give only one"
    ]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("trainer: {epohcs: 1}", "6:11: trainer.epohcs: unknown key; did you mean 'epochs'?"),
        ("sede: 1", "6:1: sede: unknown key; did you mean 'seed'?"),
        ("zzz: 1", "6:1: zzz: unknown key; keys of your own go under `extra`"),
        ("trainer: {drw: 1}", "trainer.drw: unknown key; arguments go under `args`"),
        ("metrics: [{type: a, k: 1}]", "metrics.0.k: unknown key; arguments go under `args`"),
        ("memory: {drw: 1}", "6:10: memory.drw: unknown key"),
        ("memory: {precison: bf16}", "6:10: memory.precison: unknown key; did you mean"),
        ("memory: {precision: bf61}", "memory.precision: expected one of fp32, tf32, bf16, fp16"),
        ("memory: {precision: bf61}", "found the text 'bf61'; did you mean 'bf16'?"),
        ("memory: {inplace: 1}", "6:10: memory.inplace: expected true or false, found 1"),
        ("memory: {inplace: yes}", "memory.inplace: expected true or false, found the text 'yes'"),
        ("memory: {accumulate: 0}", "expected a whole number of at least 1, found 0"),
        ("memory: fp16", "6:1: memory: expected a section of keys, found the text 'fp16'"),
        ("seed: '5'", "6:1: seed: expected a whole number of at least 0, found the text '5'"),
        ("seed: 1.0", "6:1: seed: expected a whole number of at least 0, found 1.0"),
        ("seed: true", "6:1: seed: expected a whole number of at least 0, found true"),
        ("seed: -1", "expected a whole number of at least 0, found -1"),
        ("seed: 99999999999999999999", "expected a whole number of at least 0"),
        (f"seed: {'9' * 4000}", "expected a whole number of at least 0"),
        ("seed: null", "6:1: seed: expected a whole number of at least 0, found null"),
        ("deterministic: 0", "expected true or false, found 0"),
        ("device: 0", "6:1: device: expected text, found 0"),
        ("metrics: accuracy", "6:1: metrics: expected a list, found the text 'accuracy'"),
        ("metrics: [1]", "6:11: metrics.0: expected a section of keys, found 1"),
        ("metrics: [a, a]", "6:14: metrics.1.name: 'a' is already item 0"),
        ("metrics: [{type: a, over: time}]", "metrics.0.over: expected one of batch, epoch"),
        ("loss: [{args: {}}]", "6:8: loss.0.type: missing; name of the loss"),
        ("loss: {type: a, weight: .inf}", "loss.0.weight: expected a number, found inf"),
        ("loss: {type: a, weight: .nan}", "loss.0.weight: expected a number, found nan"),
        ("loss: {type: a, weight: '1'}", "loss.0.weight: expected a number"),
        ("loss: {type: ''}", "loss.0.type: expected text"),
        ("loss: {type: a, args: [1]}", "6:17: loss.0.args: expected a section of keys"),
        ("freeze: [{until: 1 epoch}]", "freeze.0.match: missing"),
        ("init: [{match: a, weight: [x]}]", "init.0.weight: expected a section of keys"),
        ("init: [{match: {tpye: a}}]", "6:9: init.0.match: expected a pattern ('head.*'"),
        ("init: [{match: {type: a, b: c}}]", "init.0.match: expected a pattern"),
        ("init: [{match: [a, 1]}]", "init.0.match: expected a pattern"),
        ("freeze: [a, {type: 1}]", "freeze.1.match: expected a pattern"),
        ("lr_scheduler: {type: S, every: day}", "lr_scheduler.every: expected one of epoch, step"),
        ("lr_scheduler: {type: S, warmup: 5}", "6:25: lr_scheduler.warmup: a number needs a unit"),
        ("lr_scheduler: {}", "6:1: lr_scheduler.type: missing"),
        ("batch: {inputs: [1.5]}", "batch.inputs.0: expected a name or a position"),
        ("extra: [1]", "extra: expected a section of keys, found a list"),
        ("callbacks: {type: A}", "callbacks: expected a list, found a section"),
        (
            "distributed: {strategy: fdsp}",
            "distributed.strategy: expected one of auto, data_parall",
        ),
        ("distributed: {timeout: 0.5}", "timeout: expected a number of seconds, at least 1"),
        ("distributed: {timeout: 2 minutes}", "timeout: expected a number of seconds, at least 1"),
        ("distributed: {shard: [1]}", "distributed.shard.0: expected a pattern"),
        ("distributed: {overlap: 1}", "distributed.overlap: expected true or false, found 1"),
        ("distributed: {rank_log: true}", "unknown key; did you mean 'rank_logs'?"),
        ("distributed: ddp", "6:1: distributed: expected a section of keys, found the text 'ddp'"),
    ],
)
def test_each_slip_is_named_with_its_place(faults, more, expected):
    base = "name: a\nmodel: N\ndata_loader: L\noptimizer: SGD\ntrainer: {steps: 5}\n"
    if more.startswith("trainer"):
        base = base.replace("trainer: {steps: 5}", "seed: 1")
    found = faults(more, base=base)
    assert any(expected in line for line in found), found


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ("{}", "5:1: trainer: 'epochs' or 'steps' must be given"),
        ("{epochs: 1, steps: 1}", "trainer.steps: 'epochs' at x.yaml:5:11 and 'steps' at"),
        ("{epochs: 1.0}", "trainer.epochs: expected a whole number of at least 1, found 1.0"),
        ("{epochs: '20'}", "trainer.epochs: expected a whole number"),
        ("{epochs: 0}", "trainer.epochs: expected a whole number of at least 1, found 0"),
        ("{epochs: 1, monitor: low valid/loss}", "trainer.monitor: expected 'min NAME', 'max"),
        ("{epochs: 1, monitor: min}", "trainer.monitor: expected"),
        ("{epochs: 1, save_every: 5}", "trainer.save_every: a number needs a unit: '5 steps'"),
        ("{epochs: 1, save_every: 5 days}", "expected a duration such as '500 steps', '2 epochs'"),
        ("{epochs: 1, keep: 1}", "trainer.keep: expected a whole number of at least 2, found 1"),
        ("{epochs: 1, ema: {decay: 1}}", "trainer.ema.decay: expected a number between 0 and 1"),
        ("{epochs: 1, ema: {decay: 0}}", "trainer.ema.decay: expected a number between 0 and 1"),
        ("{epochs: 1, verbosity: 3}", "verbosity: expected a whole number from 0 to 2, found 3"),
        ("{epochs: 1, verbosity: true}", "verbosity: expected a whole number from 0 to 2, found t"),
        ("null", "5:1: trainer: 'epochs' or 'steps' must be given"),
    ],
)
def test_each_slip_in_the_trainer_is_named(faults, trainer, expected):
    base = "name: a\nmodel: N\ndata_loader: L\noptimizer: SGD\n"
    found = faults(f"trainer: {trainer}\n", base=base)
    assert any(expected in line for line in found), found


def test_all_faults_come_at_once(faults):
    found = faults("sede: 1\nmemory: {accumulate: 0, inplace: 2}\n", "trainer.epohcs=1")
    assert [line.split(": ")[1] for line in found] == [
        "trainer.epohcs",
        "sede",
        "memory.accumulate",
        "memory.inplace",
    ]


def test_what_is_missing_is_said_at_the_section(faults):
    assert faults(base="seed: 1\n") == [
        "x.yaml:1:1: name: missing; name of the experiment, and of its folder.",
        "x.yaml:1:1: model: missing; the network; `arch` is an alias.",
        "x.yaml:1:1: data_loader: missing; the training data.",
        "x.yaml:1:1: trainer: missing; length, saving and reports of the training.",
        "x.yaml:1:1: 'optimizer' or 'optimizers' must be given",
    ]


@pytest.mark.parametrize(
    "name", ["a", "digits-2_b.c", "名前 1", "é" * 100, "…", "a b", "...", "-c", "😀"]
)
def test_a_name_of_one_folder_is_taken(load, tmp_path, name):
    config = load("", f"name='{name}'")
    assert config["name"] == name
    (tmp_path / config["name"]).mkdir()


@pytest.mark.parametrize(
    "name",
    ["a/b", "/", ".", "..", "../x", "", " ", "a\\0b", "a\\nb", "a\\\\b", "é" * 101, "x" * 201],
)
def test_a_name_that_is_no_folder_is_refused(faults, name):
    assert re.match(r"--set name=.*: name: ", faults("", f'name="{name}"')[0])


def test_an_int_stands_where_a_float_is_asked(load):
    assert load("", "optimizer.clip_norm=1")["optimizer"]["clip_norm"] == 1


def test_thousands_of_faults_are_bounded_in_time_and_text(faults):
    found = faults("".join(f"k{i}: 1\n" for i in range(3_000)))
    assert len(found) == 101
    assert found[-1] == "and 2900 more problems"


def test_every_key_says_what_it_is_for():
    def keys_of(kind, above):
        if isinstance(kind, Section):
            for name, key in kind.keys.items():
                yield f"{above}.{name}", key
                yield from keys_of(key.field, f"{above}.{name}")
            yield from keys_of(kind.others, f"{above}.*")
        elif isinstance(kind, ListOf):
            yield from keys_of(kind.item, above)

    keys = dict(keys_of(ROOT, ""))
    assert len(keys) > 80
    for name, key in keys.items():
        assert re.fullmatch(r"(?s)['A-Z0-9].{5,}\.", key.doc), f"{name}: {key.doc}"


def test_a_structural_error_takes_no_torch_and_little_time(tmp_path):
    (tmp_path / "x.yaml").write_text("name: a\nsede: 1\n")
    program = """if True:
        import sys, time
        start = time.process_time()
        from pathlib import Path
        from base.config import load_config
        from base.errors import ConfigError
        try:
            load_config(Path(sys.argv[1]))
        except ConfigError as error:
            assert "did you mean 'seed'" in str(error)
            print(time.process_time() - start, "torch" in sys.modules, "numpy" in sys.modules)
    """
    command = [sys.executable, "-c", program, str(tmp_path / "x.yaml")]
    done = subprocess.run(command, cwd=ROOT_FOLDER, capture_output=True, text=True, check=True)
    seconds, *imported = done.stdout.split()
    assert imported == ["False", "False"]
    assert float(seconds) < 0.3


def test_loading_opens_the_files_alone_and_runs_nothing(tmp_path):
    hostile = "model: os.system\nloss: torch.hub.load\nextra: {a: '`ls`', b: '$HOME', c: ../../x}\n"
    (tmp_path / "x.yaml").write_text("inherit: p.yaml\nsede: 1\n")
    (tmp_path / "p.yaml").write_text(hostile)
    program = """if True:
        import sys
        from pathlib import Path
        from base.config import load_config
        from base.errors import ConfigError
        events = []
        kinds = {"open", "exec", "import", "os.system", "os.mkdir"}
        kinds |= {"subprocess.Popen", "socket.connect"}
        def load():
            try:
                load_config(Path(sys.argv[1]), ["extra.d=${HOME}", "model.args.x=os.system"])
            except ConfigError as error:
                return str(error)
        load()
        def note(event, args):
            if event in kinds and not isinstance(args[0], int):  # what is open already
                events.append((event, str(args[0])))
        sys.addaudithook(note)
        load()
        print(*sorted(f"{event} {Path(name).name}" for event, name in events), sep="|")
    """
    command = [sys.executable, "-c", program, str(tmp_path / "x.yaml")]
    done = subprocess.run(command, cwd=ROOT_FOLDER, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "open p.yaml|open x.yaml"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.yaml", "x.yaml"]


def test_text_alone_is_a_config_and_the_path_only_its_name():
    with pytest.raises(ConfigError) as caught:
        load_config(Path("a/b.yaml"), text="sede: 1")
    assert "a/b.yaml:1:1: sede: unknown key" in str(caught.value)
    with pytest.raises(ConfigError, match=r"^config:1:1: sede"):
        load_config(None, text="sede: 1")
    with pytest.raises(ConfigError, match=r"^config:1:1: name: missing"):
        load_config(None)
