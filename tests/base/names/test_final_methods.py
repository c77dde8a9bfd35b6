"""A final method that is overridden is an error when the class is made; old trainers are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import pytest

from base import BaseDataLoader, BaseModel, BaseTrainer
from base.errors import ConfigError
from base.names.final_methods import INSTEAD_IN_TRAINERS, OF_PYTORCH_TEMPLATE, final_names
from base.names.registry import find
from base.training.metrics import Metric
from tests.base.toy import make
from trainer.trainer import Trainer

Project = Callable[[dict[str, str]], Path]
FINAL = sorted(name for name in final_names(BaseTrainer))

STOCK = """
    import numpy as np
    import torch
    from torchvision.utils import make_grid
    from base import BaseTrainer
    from utils import inf_loop, MetricTracker


    class Trainer(BaseTrainer):
        def __init__(self, model, criterion, metric_ftns, optimizer, config, device, data_loader):
            super().__init__(model, criterion, metric_ftns, optimizer, config)

        def _train_epoch(self, epoch):
            self.model.train()

        def _valid_epoch(self, epoch):
            self.model.eval()
"""


@pytest.mark.parametrize("name", FINAL)
def test_each_final_method_of_the_trainer_is_refused(name: str) -> None:
    line = overriding.__code__.co_firstlineno + 1
    with pytest.raises(ConfigError, match=rf"Mine overrides BaseTrainer\.{name}, ") as caught:
        overriding(Trainer, name)
    assert f"test_final_methods.py:{line}: " in str(caught.value)


def overriding(base: type[Any], name: str) -> type[Any]:
    return type("Mine", (base,), {name: lambda self, *args: None})


def test_there_is_advice_for_each_method() -> None:
    assert set(FINAL) - set(INSTEAD_IN_TRAINERS) == {"has_plain_step"}
    assert set(INSTEAD_IN_TRAINERS) <= set(FINAL)


def test_all_are_told_together_each_with_what_to_do() -> None:
    with pytest.raises(ConfigError) as caught:

        class Mine(Trainer):
            def train_epoch(self) -> Any: ...

            save = None

    text = str(caught.value)
    assert "override train_step(batch)" in text
    assert "self.register(name, thing)" in text
    assert len(caught.value.problems) == 2


def test_a_mixin_before_the_trainer_counts_and_one_behind_it_does_not() -> None:
    class Mixin:
        def evaluate(self) -> None: ...

    class Behind(Trainer, Mixin): ...

    with pytest.raises(ConfigError, match=r"Mine, by way of Mixin, overrides .*\.evaluate"):

        class Mine(Mixin, Trainer): ...


def test_grandchildren_count() -> None:
    class Child(Trainer):
        def train_step(self, batch: Any) -> Any: ...

    with pytest.raises(ConfigError, match=r"Grandchild overrides BaseTrainer.validate"):

        class Grandchild(Child):
            def validate(self) -> Any: ...


@pytest.mark.parametrize("kind", ["method", "classmethod", "staticmethod", "property"])
@pytest.mark.parametrize("base", [Trainer, BaseModel, BaseDataLoader])
def test_a_final_method_of_the_users_own_counts(base: Any, kind: str) -> None:
    wrap = {"method": lambda f: f, "classmethod": classmethod, "staticmethod": staticmethod}

    @final
    def encode(*args: Any) -> None: ...

    made = property(encode) if kind == "property" else wrap[kind](encode)
    mine = type("Mine", (base,), {"encode": made})
    type("Other", (mine,), {"decode": made})
    with pytest.raises(ConfigError, match=r"Other overrides Mine\.encode, which is final"):
        type("Other", (mine,), {"encode": lambda *_: None})


def test_metrics_have_final_methods_too() -> None:
    with pytest.raises(ConfigError, match=r"overrides Metric.update, which is final: override _"):

        class Mine(Metric):
            def update(self, *args: Any) -> None: ...


@pytest.mark.parametrize("name", sorted(OF_PYTORCH_TEMPLATE))
def test_what_only_pytorch_template_calls_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"Mine defines {name}, which is never called here"):
        overriding(Trainer, name)


def test_what_is_ones_own_stays_allowed() -> None:
    class Mine(Trainer):
        def train_step(self, batch: Any) -> Any: ...
        def valid_step(self, batch: Any) -> Any: ...
        def begin_epoch(self) -> None: ...
        def _progress(self, index: int) -> str: ...
        def save_images(self) -> None: ...


# --- Through the names of a config ----------------------------------------------------------------


def test_the_error_of_a_file_says_where_and_what_without_a_traceback(project: Project) -> None:
    source = """
        from trainer.base_of_mine import Base


        class Mine(Base):
            def train_epoch(self): ...
    """
    base = "from base import BaseTrainer\nclass Base(BaseTrainer): ..."
    project({"trainer/mine.py": source, "trainer/base_of_mine.py": base})
    for _ in range(2):  # a second look, as for another section of the config, says the same
        with pytest.raises(ConfigError, match=r"^trainer/mine.py:5: Mine overrides BaseTrainer.tr"):
            find("trainer", "Mine")


STOCK_FIRST_GENERATION = STOCK.replace("MetricTracker", "").replace(
    "from utils import inf_loop, ", "from logger import Logger  # "
)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (STOCK, "Trainer"),
        (STOCK.replace("class Trainer", "class RideTrainer"), "RideTrainer"),
        (STOCK.replace("(BaseTrainer)", "(base.BaseTrainer)"), "Trainer"),
        (STOCK.replace("(BaseTrainer)", "(BaseTrainer, abc.ABC)"), "Trainer"),
        (STOCK_FIRST_GENERATION, "Trainer"),
        (STOCK + "\n\n    class Better(Trainer):\n        pass\n", "Better"),
    ],
)
def test_a_stock_trainer_is_recognised_before_its_imports_fail(
    project: Project, source: str, name: str
) -> None:
    project({"trainer/trainer.py": source, "trainer/__init__.py": "from .trainer import *"})
    with pytest.raises(ConfigError) as caught:
        find("trainer", name)
    text = str(caught.value)
    assert text.startswith("trainer/trainer.py:9: ")
    assert "is a trainer for pytorch-template" in text
    assert "replace it by Kindling's trainer/" in text
    assert "docs/from-pytorch-template.md" in text


MINE = "from base import BaseTrainer\nclass Mine(BaseTrainer): ..."


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (  # the package imports the old one, so that the new one cannot be had
            {"trainer/trainer.py": STOCK, "trainer/__init__.py": "from .trainer import *"},
            r"trainer/trainer.py:9: Trainer is a trainer for pytorch",
        ),
        (
            {"trainer/mine.py": f"import nothing_of_that_name\n{MINE}"},
            r"trainer/mine.py:1: ModuleNotFoundError",
        ),
    ],
    ids=["a stock trainer", "another error"],
)
def test_an_error_of_an_import_is_told_as_what_it_is(
    project: Project, files: dict[str, str], message: str
) -> None:
    project({"trainer/mine.py": MINE, **files})
    with pytest.raises(ConfigError, match=message):
        find("trainer", "Mine")


def test_a_stock_trainer_that_nothing_imports_does_no_harm(project: Project) -> None:
    project({"trainer/old.py": STOCK, "trainer/mine.py": MINE})
    assert find("trainer", "Mine").__name__ == "Mine"


@pytest.mark.parametrize("name", ["folder", "store", "writers"])
def test_an_attribute_of_the_run_cannot_be_set(name: str) -> None:
    class Setting(Trainer):
        def __init__(self, experiment: Any) -> None:
            super().__init__(experiment)
            setattr(self, name, None)

    with pytest.raises(ConfigError, match=rf"trainer.type: Setting sets self\.{name}, .*: choose"):
        make(trainer=Setting)
