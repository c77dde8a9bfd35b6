"""Early forms of pytorch-template's config, and what its descendants write: nothing is dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from base.config import load_config
from base.errors import ConfigError

# pytorch-template of 2018, before `{type, args}` was everywhere.
FIRST = {
    "name": "Mnist_LeNet",
    "cuda": False,
    "gpu": 0,
    "data_loader": {"type": "MnistDataLoader", "args": {"batch_size": 32}},
    "validation": {"validation_split": 0.1, "shuffle": True},
    "optimizer_type": "Adam",
    "optimizer": {"lr": 0.001, "weight_decay": 0},
    "loss": "my_loss",
    "metrics": ["my_metric"],
    "lr_scheduler_type": "ExponentialLR",
    "lr_scheduler_freq": 1,
    "lr_scheduler": {"gamma": 0.99},
    "trainer": {
        "epochs": 10,
        "save_dir": "saved/",
        "save_freq": 2,
        "verbosity": 2,
        "monitor": "val_loss",
        "monitor_mode": "min",
    },
    "visualization": {"tensorboardX": False, "log_dir": "saved/runs"},
    "arch": "MnistModel",
    "model": {"n_classes": 10},
}
MODERN = {
    "name": "x",
    "arch": {"type": "Net", "args": {}},
    "data_loader": {"type": "L", "args": {"n": 1}},
    "optimizer": {"type": "Adam", "args": {"lr": 0.1}},
    "loss": "nll_loss",
    "metrics": [],
    "trainer": {"epochs": 1, "save_period": 1},
}


@pytest.fixture
def read(write):
    """Load a tree with some keys replaced (None takes one out), from JSON."""

    def load(tree: dict, name: str = "config.json", /, **changes: Any):
        tree = {key: value for key, value in {**tree, **changes}.items() if value is not ...}
        return load_config(write(json.dumps(tree, indent=2), name))

    return load


def test_the_first_generation_is_translated(read):
    config = read(FIRST)
    assert config.is_template
    assert config["device"] == "cpu"
    assert config["model"] == {"type": "MnistModel", "args": {"n_classes": 10}, "weights": None}
    assert config["data_loader"]["args"] == {"batch_size": 32, "validation_split": 0.1}
    assert config["optimizer"]["type"] == "Adam"
    assert config["optimizer"]["args"] == {"lr": 0.001, "weight_decay": 0}
    assert config["lr_scheduler"]["type"] == "ExponentialLR"
    assert config["lr_scheduler"]["args"] == {"gamma": 0.99}
    trainer = config["trainer"]
    assert (trainer["save_every"], trainer["monitor"]) == ("2 epochs", "min valid/loss")
    assert trainer["tensorboard"] is False
    assert config.extra == {
        "validation": {"shuffle": True},
        "visualization": {"tensorboardX": False, "log_dir": "saved/runs"},
    }
    again = read(json.loads(json.dumps(dict(config))), "resolved.yaml")
    assert again == config


def test_a_model_section_with_a_module_name_stays(read):
    model = {"type": "UNet", "module_name": "model.unet", "args": {"depth": 3}}
    config = read(MODERN, arch=..., model=model)
    assert config["model"] == {"type": "UNet", "args": {"depth": 3}, "weights": None}
    assert config.extra == {"model": {"module_name": "model.unet"}}
    assert config.notes == ["kept in extra, unused by Kindling: model.module_name"]


@pytest.mark.parametrize(
    ("key", "section", "expected"),
    [
        ("data_loader", {"type": "L", "module_name": "m", "args": {"n": 2}}, {"n": 2}),
        ("valid_data_loader", {"type": "L", "module_name": "m", "args": {"n": 2}}, {"n": 2}),
        ("test_data_loader", {"type": "L", "note": 1, "args": {}}, {}),
        ("optimizer", {"type": "SGD", "args": {"lr": 1}, "warm": 3}, {"lr": 1}),
        ("optimizer", {"type": "SGD", "lr": 1, "module": "m"}, {"lr": 1}),
        ("lr_scheduler", {"type": "StepLR", "args": {"step_size": 1}, "on": "x"}, {"step_size": 1}),
        ("lr_scheduler", {"type": "StepLR", "step_size": 4, "every": "step"}, {"step_size": 4}),
        ("loss", {"type": "Focal", "args": {"gamma": 2}, "module": "m"}, {"gamma": 2}),
        ("loss", {"type": "Focal", "gamma": 2, "weight": [1, 2]}, {"gamma": 2, "weight": [1, 2]}),
    ],
)
def test_a_section_stays_whatever_else_is_in_it(read, key, section, expected):
    config = read(MODERN, **{key: section})
    found = config[key][0] if key == "loss" else config[key]
    assert (found["type"], found["args"]) == (section["type"], expected)
    rest = {k: v for k, v in section.items() if k not in ("type", "args", *expected, "every")}
    assert config.extra == ({key: rest} if rest else {})
    assert config.notes == [f"kept in extra, unused by Kindling: {key}.{name}" for name in rest]


def test_sections_in_a_list_too(read):
    losses = [{"type": "A", "module": "m"}, "B", {"type": "C", "weight": 2, "args": {"x": 1}}]
    config = read(MODERN, loss=losses)
    assert [loss["type"] for loss in config["loss"]] == ["A", "B", "C"]
    assert config.extra == {"loss": [{"module": "m"}, {}, {}]}
    assert config.notes == ["kept in extra, unused by Kindling: loss.0.module"]


LOADER_NAMES = {
    "data_loader": "train_loader train_data_loader training_loader train_dataloader dataloader "
                   "loader data_loader_train",
    "valid_data_loader": "valid_loader val_loader validation_loader val_data_loader "
                         "validation_data_loader",
    "test_data_loader": "test_loader testing_dataloader",
}  # fmt: skip


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(name, ours) for ours in LOADER_NAMES for name in LOADER_NAMES[ours].split()],
)
def test_loaders_go_by_many_names(read, faults, theirs, ours):
    section = {"type": "Mine", "args": {"n": 7}}
    changes = {"data_loader": ...} if ours == "data_loader" else {}
    config = read(MODERN, **changes, **{theirs: section})
    assert config[ours] == section
    assert config.extra == {}
    # In our own format it is an error that names it.
    assert f"{theirs}: unknown key; did you mean '{ours}'?" in faults(f"{theirs}: L\n")[0]


@pytest.mark.parametrize("key", ["data_loader", "data_loaders", "data"])
def test_a_data_loader_may_have_parts(read, key):
    parts = {"train": {"type": "A"}, "val": {"type": "B"}, "test": {"type": "C"}}
    config = read(MODERN, **({"data_loader": ...} | {key: parts}))
    types = [config[key]["type"] for key in ("data_loader", "valid_data_loader")]
    assert (types, config["test_data_loader"]["type"]) == (["A", "B"], "C")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"data_loader": ..., "train_loader": {"type": "A"}, "training_loader": {"type": "B"}},
            "data_loader: missing; found 'train_loader' at config.json:",
        ),
        (
            {"val_loader": {"type": "A"}, "valid_loader": {"type": "B"}},
            "rename the right one to `valid_data_loader`",
        ),
        (
            {"data_loader": ..., "dataset": {"type": "A"}, "train_data": {"type": "B"}},
            "data_loader: missing; is it 'dataset' or 'train_data'? Rename it `data_loader`",
        ),
        (
            {"data_loader": ..., "data": {"train": {"batch_size": 2, "datasets": []}}},
            "data_loader: missing; is it 'data'?",
        ),
        ({"lr_scheduler_type": "StepLR", "lr_scheduler_freq": 2}, "not each 2"),
        ({"trainer": {"epochs": 1, "monitor": "val_acc", "save_freq": 1}}, "expected 'min NAME'"),
    ],
)  # fmt: skip
def test_what_has_two_meanings_is_an_error_that_names_them(read, changes, expected):
    with pytest.raises(ConfigError) as caught:
        read(MODERN, **changes)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("config.json:")


def test_a_second_loader_beside_data_loader_is_kept(read):
    config = read(MODERN, train_loader={"type": "Other"})
    assert config["data_loader"]["type"] == "L"
    assert config.extra == {"train_loader": {"type": "Other"}}


@pytest.mark.parametrize(
    ("value", "used", "word"),
    [
        (3, 2, "maximum"),
        (2000, 2, "maximum"),
        (-1, 0, "minimum"),
        (2.0, 2, ""),
        (True, 1, ""),
        (1, 1, ""),
    ],
)
def test_verbosity_is_clamped_with_a_note(read, value, used, word):
    config = read(MODERN, trainer={"epochs": 1, "save_period": 1, "verbosity": value})
    assert config["trainer"]["verbosity"] == used
    note = f"trainer.verbosity is {value}: {used}, the {word}, is used"
    assert config.notes == ([note] if word else [])


@pytest.mark.parametrize(
    ("changes", "section"),
    [
        ({"optimizer_type": "SGD", "optimizer": {"args": {"lr": 1}}}, {"lr": 1}),
        ({"optimizer": "SGD", "optimizer_args": {"lr": 1}}, {"lr": 1}),
        ({"optimizer": "SGD", "optimizer_params": {"lr": 1}}, {"lr": 1}),
        ({"optimizer_type": "SGD", "optimizer": ...}, {}),
        ({"optimizer": {"class_name": "SGD", "lr": 1}}, {"lr": 1}),
        ({"optimizer": {"name": "SGD", "params": {"lr": 1}}}, {"lr": 1}),
        ({"optimizer": {"type": "SGD", "kwargs": {"lr": 1}}}, {"lr": 1}),
    ],
)
def test_type_and_arguments_under_other_names(read, changes, section):
    optimizer = read(MODERN, **changes)["optimizer"]
    assert (optimizer["type"], optimizer["args"]) == ("SGD", section)


def test_a_model_by_a_word_and_its_arguments(read):
    for changes in ({"arch_args": {"n": 3}}, {"model": {"n": 3}}, {"arch_params": {"n": 3}}):
        model = read(MODERN, arch="Net", **changes)["model"]
        assert (model["type"], model["args"]) == ("Net", {"n": 3})


@pytest.mark.parametrize("scheduler", [None, "", "none"])
def test_no_scheduler_by_its_type(read, scheduler):
    config = read(MODERN, lr_scheduler_type=scheduler, lr_scheduler={"gamma": 1})
    assert config["lr_scheduler"] is None


@pytest.mark.parametrize(
    ("changes", "device", "n_notes"),
    [
        ({"cuda": True}, "auto", 0),
        ({"cuda": False}, "cpu", 0),
        ({"cuda": True, "gpu": 1}, "auto", 1),
        ({"cuda": True, "n_gpu": 0}, "cpu", 0),
        ({"n_gpu": 1}, "auto", 0),
    ],
)
def test_devices(read, changes, device, n_notes):
    config = read(MODERN, **changes)
    assert (config["device"], len(config.notes), config.extra) == (device, n_notes, {})


OTHERS = {**MODERN, "arch": ..., "model": "A"}


@pytest.mark.parametrize(
    ("tree", "name", "is_theirs"),
    [
        (FIRST, "config.json", True),
        (FIRST, "config.yaml", True),
        (OTHERS | {"model": {"type": "A", "module_name": "m"}}, "config.json", True),
        (OTHERS, "config.json", True),  # save_period
        (OTHERS | {"trainer": {"epochs": 1}}, "config.json", False),
        (OTHERS | {"trainer": {"epochs": 1, "monitor": "min val_x"}}, "config.json", True),
        (OTHERS | {"trainer": {"epochs": 1}, "memory": {}}, "x.json", False),
    ],
)
def test_which_files_are_in_that_format(read, tree, name, is_theirs):
    assert read(tree, name).is_template == is_theirs


# --- Nothing is lost, whatever descendants write --------------------------------------------------

WORDS = [
    *("type", "args", "name", "module_name", "params", "lr", "weight", "every", "monitor", "path"),
    *("verbosity", "save_freq", "epochs", "batch_size", "mine", "weights", "match"),
]
ROOTS = [
    *FIRST,
    *("n_gpu", "train_loader", "val_loader", "test_loader", "loader", "loss_args", "seed", "init"),
    *("augmentation", "preprocess", "memory", "batch", "freeze", "valid_data_loader", "callbacks"),
    *("optimizer_args", "model_type", "dataset", "gpu_ids", "freeze_layers", "device", "profile"),
]
NUMBERS = st.integers(1000, 9_999_999)
LEAVES = NUMBERS | st.just("text") | st.booleans() | st.none()
INNER = st.recursive(
    LEAVES,
    lambda inner: (
        st.dictionaries(st.sampled_from(WORDS), inner, max_size=4) | st.lists(inner, max_size=3)
    ),
    max_leaves=6,
)


def numbers_in(value: Any) -> Iterator[int]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        yield from numbers_in(item)
    if type(value) is int and value >= 1000:
        yield value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    st.sampled_from([FIRST, MODERN]),
    st.dictionaries(st.sampled_from(ROOTS), INNER, max_size=4),
    st.sets(st.sampled_from(ROOTS), max_size=2),
)
def test_every_number_of_the_file_is_in_the_config_or_there_is_an_error(
    read, tree, changes, left_out
):
    changes |= dict.fromkeys(left_out - changes.keys(), ...)
    try:
        config = read(tree, **changes)
    except ConfigError:
        return
    text = json.dumps(dict(config)) + " ".join(config.notes)
    given = [value for key, value in changes.items() if value is not ...]
    lost = [number for number in numbers_in(given) if str(number) not in text]
    assert not lost
    assert load_config(None, text=config.to_yaml()) == config
