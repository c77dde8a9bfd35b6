"""pytorch-template's own files: recognised, translated, places kept, own sections kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from base.config import load_config
from base.errors import ConfigError

# The shape of the original's config.json.
ORIGINAL = {
    "name": "Mnist_LeNet",
    "n_gpu": 1,
    "arch": {"type": "MnistModel", "args": {}},
    "data_loader": {
        "type": "MnistDataLoader",
        "args": {
            "data_dir": "data/",
            "batch_size": 128,
            "shuffle": True,
            "validation_split": 0.1,
            "num_workers": 2,
        },
    },
    "optimizer": {"type": "Adam", "args": {"lr": 0.001, "weight_decay": 0, "amsgrad": True}},
    "loss": "nll_loss",
    "metrics": ["accuracy", "top_k_acc"],
    "lr_scheduler": {"type": "StepLR", "args": {"step_size": 50, "gamma": 0.1}},
    "trainer": {
        "epochs": 100,
        "save_dir": "saved/",
        "save_period": 1,
        "verbosity": 2,
        "monitor": "min val_loss",
        "early_stop": 10,
        "tensorboard": True,
    },
}


@pytest.fixture
def changed(write):
    """Load the original with some values changed by dotted key (None of them removed: ...)."""

    def load(name: str = "config.json", /, **changes: object):
        tree = copy.deepcopy(ORIGINAL)
        for key, value in changes.items():
            *above, last = key.split("__")
            section = tree
            for part in above:
                section = section[part]
            section[last] = value
            if value is ...:
                del section[last]
        return load_config(write(json.dumps(tree, indent=4), name))

    return load


def test_the_original_is_translated(changed):
    config = changed()
    trainer = config["trainer"]
    assert config.is_template
    assert config["name"] == "Mnist_LeNet"
    assert config["model"] == {"type": "MnistModel", "args": {}, "weights": None}
    assert config["device"] == "auto"
    assert config["data_loader"] == ORIGINAL["data_loader"]
    assert config["optimizer"]["args"] == ORIGINAL["optimizer"]["args"]
    (loss,) = config["loss"]
    assert (loss["type"], loss["weight"], loss["name"]) == ("nll_loss", 1.0, "nll_loss")
    assert [metric["type"] for metric in config["metrics"]] == ["accuracy", "top_k_acc"]
    assert config["lr_scheduler"]["args"] == {"step_size": 50, "gamma": 0.1}
    assert config["lr_scheduler"]["every"] == "epoch"
    assert (trainer["epochs"], trainer["save_dir"], trainer["save_every"]) == (
        100,
        "saved/",
        "1 epochs",
    )
    assert (trainer["monitor"], trainer["early_stop"]) == ("min valid/loss", 10)
    assert (trainer["verbosity"], trainer["tensorboard"]) == (2, True)
    assert config.extra == {}
    assert config.notes == []


def test_places_point_into_the_file(changed):
    config = changed()
    lines = Path("config.json").read_text().splitlines()
    for keys, text in {
        ("model", "type"): '"type": "MnistModel"',
        ("trainer", "save_every"): '"save_period"',
        ("trainer", "monitor"): '"monitor"',
        ("data_loader", "args", "data_dir"): '"data_dir"',
        ("device",): '"n_gpu"',
    }.items():
        file, line, column = config.where(*keys).split(":")
        assert file == "config.json"
        assert lines[int(line) - 1][int(column) - 1 :].startswith(text)


def test_the_resolved_config_is_in_our_format(changed, write):
    config = changed(trainer__monitor="min loss", visualization={"a": [1]}, trainer__mine=1)
    again = load_config(write(config.to_yaml(), "resolved.yaml"))
    assert again == config
    assert not again.is_template
    assert again["trainer"]["monitor"] == "min train/loss"
    assert again.extra == {"visualization": {"a": [1]}, "trainer": {"mine": 1}}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("min val_loss", "min valid/loss"),
        ("max val_accuracy", "max valid/accuracy"),
        ("max val_top_k_acc", "max valid/top_k_acc"),
        ("min loss", "min train/loss"),
        ("max accuracy", "max train/accuracy"),
        ("min train_loss", "min train/loss"),
        ("max valid/accuracy", "max valid/accuracy"),
        ("off", "off"),
        (..., None),
    ],
)
def test_monitors_become_the_names_of_our_logs(changed, theirs, ours):
    assert changed(trainer__monitor=theirs)["trainer"]["monitor"] == ours


NEVER = (0, -1, float("inf"), "inf", ..., None, 1e12, False)


@pytest.mark.parametrize(
    ("theirs", "ours"), [(10, 10), (10.0, 10), *((value, None) for value in NEVER)]
)
def test_early_stop_is_off_as_descendants_write_it(changed, theirs, ours):
    assert changed(trainer__early_stop=theirs)["trainer"]["early_stop"] == ours


@pytest.mark.parametrize(
    ("key", "values", "ours"),
    [("lr_scheduler", (..., None, {}), None), ("metrics", (..., None, []), [])],
)
def test_what_is_left_empty_is_none(changed, key, values, ours):
    for value in values:
        assert changed(**{key: value})[key] == ours


def test_a_loss_may_have_arguments(changed):
    loss = changed(loss={"type": "FocalLoss", "args": {"gamma": 2}})["loss"]
    assert (loss[0]["type"], loss[0]["args"]) == ("FocalLoss", {"gamma": 2})


def test_devices(changed):
    assert changed(n_gpu=0)["device"] == "cpu"
    assert changed(n_gpu=1)["device"] == "auto"
    assert changed(n_gpu=4)["device"] == "n_gpu:4"
    assert changed(n_gpu=[0, 1])["device"] == "auto"


def test_iterations_and_the_older_tensorboard_key(changed):
    more = {"trainer__tensorboard": ..., "trainer__tensorboardX": False}
    trainer = changed(trainer__len_epoch=500, **more)["trainer"]
    assert (trainer["epoch_steps"], trainer["tensorboard"]) == (500, False)
    assert changed(trainer__len_epoch=None)["trainer"]["epoch_steps"] is None


def test_own_sections_and_keys_are_kept_and_named_in_one_note(changed):
    config = changed(
        visualization={"tensorboardX": True, "log_dir": "saved/runs"},
        seeds=[1, 2],
        trainer__my_key=5,
        trainer__save_freq=3,
        arch__pretrained="x.pth",
        args={"not": "ours"},
        _comment="for people",
        trainer___note="for people",
    )
    assert config.extra == {
        "visualization": {"tensorboardX": True, "log_dir": "saved/runs"},
        "seeds": [1, 2],
        "args": {"not": "ours"},
        "trainer": {"my_key": 5, "save_freq": 3},
        "arch": {"pretrained": "x.pth"},
    }
    assert config.notes == [
        "kept in extra, unused by Kindling: visualization, seeds, args, arch.pretrained, "
        "trainer.my_key, trainer.save_freq"
    ]
    assert config.where("extra", "trainer", "my_key").startswith("config.json:")


def test_keys_of_ours_are_taken_where_they_fit(changed):
    config = changed(
        seed=7,
        memory={"precision": "bf16"},
        trainer__keep=5,
        init="xavier",
        device="cuda:3",
        model="x",
        valid_data_loader=None,
    )
    assert (config["seed"], config["memory"]["precision"], config["trainer"]["keep"]) == (
        7,
        "bf16",
        5,
    )
    assert config["model"]["type"] == "MnistModel"
    assert config.extra == {"init": "xavier", "device": "cuda:3", "model": "x"}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optimizer", {"type": "Adam", "args": [1]}, "optimizer.args: expected a section of keys"),
        ("trainer__epochs", "5", "trainer.epochs: expected a whole number of at least 1"),
        ("trainer__monitor", "lowest", "trainer.monitor: expected 'min NAME'"),
        ("trainer__save_period", 0, "trainer.save_every: a duration must be positive"),
        ("trainer__early_stop", "soon", "trainer.early_stop: expected a whole number"),
        ("trainer", [], "trainer: expected a section of keys"),
        ("arch", ..., "model: missing"),
        ("arch", 5, "model: expected a section of keys, found 5"),
        ("name", "..", "name: '..' is not a valid name for a single folder"),
        ("metrics", "accuracy", "metrics: expected a list"),
    ],
)
def test_what_the_format_knows_is_checked(changed, key, value, expected):
    with pytest.raises(ConfigError) as caught:
        changed(**{key: value})
    assert expected in str(caught.value)


@pytest.mark.parametrize("name", ["CIFAR/ResNet32", "/CIFAR//ResNet32/", "CIFAR\\ResNet32"])
def test_a_name_of_nested_folders_stands_for_one(changed, name):
    config = changed(name=name)
    assert config["name"] == "CIFAR_ResNet32"
    assert f"name {name!r} becomes 'CIFAR_ResNet32', a single folder" in config.notes
    assert not any("one folder" in note for note in changed().notes)


def test_which_files_are_in_that_format(changed, write):
    assert changed(n_gpu=...).is_template  # JSON with `arch`
    assert changed("config.yaml").is_template  # YAML with n_gpu
    assert changed("config.yaml", n_gpu=...).is_template  # save_period in the trainer
    no_period = {"n_gpu": ..., "trainer__save_period": ..., "trainer__monitor": "min valid/loss"}
    assert not changed("config.yaml", **no_period).is_template  # ours, `arch` for `model`
    ours = (
        "name: a\nmodel: N\ndata_loader: L\noptimizer: SGD\ntrainer: {epochs: 1, save_period: 2}\n"
    )
    with pytest.raises(ConfigError, match=r"trainer.save_period: unknown key"):
        load_config(write(ours))


def test_a_config_of_ours_can_inherit_one_of_theirs(changed, write):
    changed(mine=1)
    child = "inherit: config.json\nname: child\narch: {args: {width: 2}}\ntrainer: {epochs: 3}\n"
    config = load_config(write(child), ["trainer.save_every=2 epochs", "extra.mine=2"])
    assert config["model"] == {"type": "MnistModel", "args": {"width": 2}, "weights": None}
    assert (config["trainer"]["epochs"], config["trainer"]["save_every"]) == (3, "2 epochs")
    assert config.extra == {"mine": 2}
    assert config.is_template


def test_a_section_that_is_nearly_ours_says_what_keeps_it_from_use(tmp_path):
    old = {**ORIGINAL, "batch": {"inputs": [0], "idz": True}, "memory": {"size": 3}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = load_config(tmp_path / "config.json")
    assert config.extra["batch"] == {"inputs": [0], "idz": True}
    (note,) = [each for each in config.notes if each.startswith("batch is not used")]
    assert "batch.idz: unknown key; did you mean 'ids'?" in note
    assert not [each for each in config.notes if each.startswith("memory")]
