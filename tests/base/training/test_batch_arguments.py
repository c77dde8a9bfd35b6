"""Several targets by name, and the whole batch: what a loss or a metric has parameters for."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_loss_calls import PARTS, gradients
from torch import Tensor, nn
from toy import assert_resumes, make

from base.base_data_loader import BaseDataLoader
from base.config import load_config
from base.data.batch import Targets, count_samples, inputs_of, target_of
from base.errors import ConfigError, TrainingError
from base.names.registry import DATA_LOADERS, LOSSES, METRICS
from base.run.checks import check
from base.training.batch_arguments import DataParameters, takes_batch
from trainer.trainer import Trainer

N = 20
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(N, 5, generator=GENERATOR)
LABELS = torch.randint(0, 3, (N,), generator=GENERATOR)
MASK = torch.rand(N, generator=GENERATOR) < 0.6
MASK[:4], MASK[4] = False, True  # a part in which nothing counts
IDS = [f"sample {number}" for number in range(N)]
CONFIG = """
name: named
seed: 1
model: {type: MLP, args: {n_inputs: 5, hidden: [], n_outputs: 3}}
data_loader: {type: Tuples}
batch: {inputs: [0], target: {labels: 1, mask: 2, ids: 3}}
optimizer: {type: SGD, args: {lr: 0.1}}
loss: LOSS
trainer: {epochs: 1, tensorboard: false, progress: false, verbosity: 0}
"""
DICTS = CONFIG.replace("Tuples", "Dicts").replace(
    "inputs: [0], target: {labels: 1, mask: 2, ids: 3}",
    "inputs: [image], target: [labels, mask, ids]",
)


class Tuples(BaseDataLoader):
    def __init__(self, batch_size: int = 20, validation_split: int = 0) -> None:
        samples: Any = list(zip(INPUTS, LABELS, MASK, IDS, strict=True))
        super().__init__(samples, batch_size, False, validation_split, 0)


class Dicts(BaseDataLoader):
    def __init__(self, batch_size: int = 20) -> None:
        names = ("image", "labels", "mask", "ids")
        samples: Any = [
            dict(zip(names, sample, strict=True))
            for sample in zip(INPUTS, LABELS, MASK, IDS, strict=True)
        ]
        super().__init__(samples, batch_size, False, 0, 0)


def masked(output: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return F.cross_entropy(output, labels, reduction="none")[mask].mean()


masked.denominator = lambda labels, mask: mask.sum()  # type: ignore[attr-defined]


def masked_target(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Calls the labels by another name than the config."""
    assert mask is not None
    return masked(pred, target, mask)


masked_target.denominator = masked.denominator  # type: ignore[attr-defined]


def by_name_only(output: Tensor, *, labels: Tensor, mask: Tensor) -> Tensor:
    return masked(output, labels, mask)


by_name_only.denominator = lambda _, mask: mask.sum()  # type: ignore[attr-defined]


def of_batch(output: Tensor, target: Any, batch: Any) -> Tensor:
    parts = batch if isinstance(batch, dict) else {"labels": batch[1], "mask": batch[2]}
    return masked(output, parts["labels"], parts["mask"])


def second_is_batch(output: Tensor, batch: Any) -> Tensor:
    return of_batch(output, None, batch)


def of_dict(output: Tensor, target: dict[str, Any]) -> Tensor:
    return masked(output, target["labels"], target["mask"])


of_dict.denominator = lambda target: target["mask"].sum()  # type: ignore[attr-defined]


def by_quotient(output: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """0/0, in its gradient too, where a part has nothing that counts."""
    return (F.cross_entropy(output, labels, reduction="none") * mask).sum() / mask.sum()


by_quotient.denominator = masked.denominator  # type: ignore[attr-defined]


class Masked(nn.Module):
    def denominator(self, target: Tensor, mask: Tensor) -> Tensor:
        return mask.sum()

    def forward(self, output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        return masked(output, target, mask)


EXACT = [masked, masked_target, by_name_only, of_dict, by_quotient, Masked]
ALL = [*EXACT, of_batch, second_is_batch]


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    for loader in (Tuples, Dicts):
        monkeypatch.setitem(DATA_LOADERS.registered, loader.__name__, loader)
    for named in ALL:
        monkeypatch.setitem(LOSSES.registered, named.__name__, named)


@pytest.mark.parametrize("text", [CONFIG, DICTS], ids=["tuples", "dicts"])
@pytest.mark.parametrize("named", ALL, ids=lambda each: each.__name__)
def test_a_loss_is_given_what_it_has_parameters_for(named: Any, text: str) -> None:
    trainer = make(text=text.replace("LOSS", named.__name__))
    check(trainer)
    found = trainer.evaluate(trainer.train_loader, "valid")["valid/loss"]
    with torch.no_grad():
        expected = masked(trainer.model(INPUTS), LABELS, MASK)
    assert found == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("text", [CONFIG, DICTS], ids=["tuples", "dicts"])
@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("named", EXACT, ids=lambda each: each.__name__)
def test_parts_of_a_batch_count_by_the_mask(named: Any, parts: list[str], text: str) -> None:
    trainer = make(*parts, text=text.replace("LOSS", named.__name__))
    found = trainer.evaluate(trainer.train_loader, "valid")["valid/loss"]
    whole = masked(trainer.model(INPUTS), LABELS, MASK)
    assert found == pytest.approx(whole.item(), rel=1e-5)
    expected = torch.autograd.grad(whole, list(trainer.model.parameters()))
    for ours, theirs in zip(gradients(trainer), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_one_called_target_is_the_target_of_torchs_losses_and_shipped_metrics() -> None:
    text = CONFIG.replace("labels: 1", "target: 1").replace("LOSS", "cross_entropy")
    trainer = make("metrics=[accuracy, {type: F1, over: batch}]", text=text)
    values = trainer.evaluate(trainer.train_loader, "valid")
    with torch.no_grad():
        output = trainer.model(INPUTS)
    assert values["valid/loss"] == pytest.approx(F.cross_entropy(output, LABELS).item())
    right = (output.argmax(1) == LABELS).double().mean().item()
    assert values["valid/accuracy"] == pytest.approx(right)


def test_a_section_names_one_of_several() -> None:
    section = "{type: cross_entropy, target: labels}"
    trainer = make(
        "metrics=[{type: accuracy, target: labels}]", text=CONFIG.replace("LOSS", section)
    )
    found = trainer.evaluate(trainer.train_loader, "valid")["valid/loss"]
    with torch.no_grad():
        assert found == pytest.approx(F.cross_entropy(trainer.model(INPUTS), LABELS).item())


def test_a_plain_loss_of_several_says_how_to_name_one() -> None:
    with pytest.raises(TrainingError, match=r"several targets: name one, as in `target: labels`"):
        check(make(text=CONFIG.replace("LOSS", "cross_entropy")))


def test_torchs_own_options_are_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    text = CONFIG.replace("labels: 1, mask: 2", "target: 1, weight: 2")
    trainer = make(text=text.replace("LOSS", "cross_entropy"))
    found = trainer.evaluate(trainer.train_loader, "valid")["valid/loss"]
    with torch.no_grad():
        assert found == pytest.approx(F.cross_entropy(trainer.model(INPUTS), LABELS).item())
    assert DataParameters.from_function(F.gaussian_nll_loss).needed == {"var": True}
    assert list(DataParameters.from_function(nn.CTCLoss()).needed) == [
        "input_lengths",
        "target_lengths",
    ]


def test_what_torchs_losses_require_is_data(monkeypatch: pytest.MonkeyPatch) -> None:
    class Varying(BaseDataLoader):
        def __init__(self, batch_size: int = 20) -> None:
            samples: Any = list(zip(INPUTS, INPUTS[:, :3], INPUTS[:, 2:].exp(), strict=True))
            super().__init__(samples, batch_size, False, 0, 0)

    monkeypatch.setitem(DATA_LOADERS.registered, "Tuples", Varying)
    text = CONFIG.replace("{labels: 1, mask: 2, ids: 3}", "{target: 1, var: 2}")
    trainer = make(*PARTS[3], text=text.replace("LOSS", "gaussian_nll_loss"))
    whole = F.gaussian_nll_loss(trainer.model(INPUTS), INPUTS[:, :3], INPUTS[:, 2:].exp())
    expected = torch.autograd.grad(whole, list(trainer.model.parameters()))
    for ours, theirs in zip(gradients(trainer), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_nobody_gives_is_an_error_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def lengthy(output: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        return output.mean()

    monkeypatch.setitem(LOSSES.registered, "lengthy", lengthy)
    monkeypatch.setitem(METRICS.registered, "lengthy", lengthy)
    with pytest.raises(ConfigError) as raised:
        check(make(text=DICTS.replace("LOSS", "lengthy")))
    assert str(raised.value) == (
        "loss.0: loss 'lengthy' is missing the argument 'lengths'; the targets are labels, "
        "mask, ids; the batch has 'image', 'labels', 'mask', 'ids': name the items, `batch: "
        "{target: {labels: ..., mask: ..., ids: ..., lengths: ...}}`, or pass it under `args`"
    )
    with pytest.raises(ConfigError, match=r"metrics\.0: metric 'lengthy' .*has 4 items, 0 to 3"):
        check(make("metrics=[lengthy]", text=CONFIG.replace("LOSS", "masked")))

    class Giving(Trainer):
        def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Any]:
            one = self.losses["lengthy"](outputs, batch["labels"], batch["mask"])
            return {"one": one, "two": self.losses["lengthy"](outputs, 1, lengths=batch["mask"])}

    check(make(text=DICTS.replace("LOSS", "lengthy"), trainer=Giving))


def test_arguments_of_the_config_are_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(output: Tensor, labels: Tensor, mask: float) -> Tensor:
        return mask * F.cross_entropy(output, labels)

    monkeypatch.setitem(LOSSES.registered, "scaled", scaled)
    trainer = make(text=CONFIG.replace("LOSS", "{type: scaled, args: {mask: 2.0}}"))
    found = trainer.evaluate(trainer.train_loader, "valid")["valid/loss"]
    with torch.no_grad():
        assert found == pytest.approx(2 * F.cross_entropy(trainer.model(INPUTS), LABELS).item())


def test_a_loss_of_the_output_alone_takes_options(monkeypatch: pytest.MonkeyPatch) -> None:
    def roughness(output: Tensor, *, power: int = 2) -> Tensor:
        return output.abs().pow(power).mean()

    monkeypatch.setitem(LOSSES.registered, "roughness", roughness)
    section = "[masked, {type: roughness, args: {power: 3}, weight: 0.5}]"
    trainer = make(*PARTS[0], text=CONFIG.replace("LOSS", section))
    found = trainer.evaluate(trainer.train_loader, "valid")
    with torch.no_grad():
        expected = trainer.model(INPUTS).abs().pow(3).mean()
    assert found["valid/roughness"] == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ConfigError, match=r"args\.target: 'target' is passed by Kindling"):
        make(text=CONFIG.replace("LOSS", "{type: masked_target, args: {target: 1}}"))


# --- Metrics --------------------------------------------------------------------------------------


def mask_share(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The mean over samples of a batch."""
    return ((output.argmax(1) == target) & mask).float().mean()


def masked_accuracy(output: Tensor, labels: Tensor, mask: Tensor) -> Any:
    is_right = (output.argmax(1) == labels) & mask
    return is_right.sum(), mask.sum()


def numpy_share(output: Any, labels: Any, mask: Any) -> float:
    import numpy as np

    return float(
        np.mean((np.argmax(np.asarray(output), 1) == np.asarray(labels)) & np.asarray(mask))
    )


def id_metric(output: Tensor, labels: Tensor, mask: Tensor, ids: list[str]) -> float:
    """Needs all of an epoch, in its order."""
    n = len(output)
    assert (len(labels), len(mask), ids) == (n, n, IDS[:n])
    return float(((output.argmax(1) == labels) & mask).sum() / mask.sum())


def batch_metric(output: Tensor, target: Any, batch: Any) -> Tensor:
    return ((output.argmax(1) == batch[1]) & batch[2]).float().mean()


class IdsOfWrong:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.ids: list[str] = []

    def update(self, output: Tensor, labels: Tensor, ids: list[str]) -> None:
        wrong = (output.argmax(1) != labels).tolist()
        self.ids += [name for name, is_wrong in zip(ids, wrong, strict=True) if is_wrong]

    def compute(self) -> float:
        assert len(set(self.ids)) == len(self.ids)
        return len(self.ids) / N


METRIC_LIST = [mask_share, masked_accuracy, numpy_share, id_metric, batch_metric, IdsOfWrong]


@pytest.mark.parametrize("size", [20, 7, 3])
def test_metrics_are_given_what_they_have_parameters_for(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for named in METRIC_LIST:
        monkeypatch.setitem(METRICS.registered, named.__name__, named)
    sections = [f"{each.__name__}" for each in METRIC_LIST if each is not id_metric]
    sections += ["{type: id_metric, over: epoch}", "{type: batch_metric, over: epoch, name: whole}"]
    sections += ["{type: MeanLoss, args: {loss: masked}}"]
    settings = [f"metrics=[{', '.join(sections)}]", f"data_loader.args.batch_size={size}"]
    trainer = make(*settings, text=CONFIG.replace("LOSS", "masked"))
    found = trainer.evaluate(trainer.train_loader, "valid")
    with torch.no_grad():
        output = trainer.model(INPUTS)
    is_right = output.argmax(1) == LABELS
    share = (is_right & MASK).double().mean().item()
    among = ((is_right & MASK).sum() / MASK.sum()).item()
    expected = {
        "mask_share": share, "numpy_share": share, "batch_metric": share, "whole": share,
        "masked_accuracy": among, "id_metric": among, "IdsOfWrong": 1 - is_right.double().mean(),
        "MeanLoss": masked(output, LABELS, MASK), "loss": masked(output, LABELS, MASK),
    }  # fmt: skip
    for name, value in expected.items():
        assert found[f"valid/{name}"] == pytest.approx(float(value), rel=1e-5), name


def test_a_run_resumed_in_mid_epoch_has_what_metrics_gathered(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for named in METRIC_LIST:
        monkeypatch.setitem(METRICS.registered, named.__name__, named)
    metrics = "metrics=[{type: id_metric, over: epoch}, IdsOfWrong, masked_accuracy]"
    text = CONFIG.replace("LOSS", "masked")
    assert_resumes(tmp_path, metrics, "data_loader.args.batch_size=8", text=text, stop_at=2)


# --- Batches --------------------------------------------------------------------------------------


def rules(text: str) -> Any:
    return make("batch=" + text, text=CONFIG.replace("LOSS", "masked")).config["batch"]


def test_the_model_gets_what_is_no_target() -> None:
    image, label, mask = torch.ones(2, 3), torch.tensor([1, 2]), torch.tensor([True, False])
    several = {"inputs": None, "target": {"label": 1, "mask": -1}, "size": None}
    args, keywords = inputs_of([image, label, mask], several)
    assert (len(args), args[0] is image, keywords) == (1, True, {})
    of_dict = {"inputs": None, "target": {"label": "y", "mask": "m"}, "size": None}
    batch = {"image": image, "y": label, "m": mask}
    assert inputs_of(batch, of_dict)[1].keys() == {"image"}
    found = target_of(batch, of_dict)
    assert isinstance(found, Targets)
    assert found["label"] is label
    assert count_samples(batch, of_dict) == 2
    with pytest.raises(ConfigError, match="all items of a batch are targets: name what the model"):
        inputs_of([image, label], {"inputs": None, "target": {"a": 0, "b": 1}, "size": None})
    with pytest.raises(ConfigError, match=r"target\.mask: a batch has no item 'mas': .*'mask'\?"):
        target_of({"mask": mask}, {"inputs": None, "target": {"mask": "mas"}, "size": None})


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("[1, 2]", "batch.target: expected names, found a position: name each"),
        ("[]", "batch.target: expected at least one name"),
        ("{}", "batch.target: expected at least one name"),
        ("{batch: 1}", "batch.target.batch: 'batch' is the whole batch"),
        ("{mask: [1]}", "batch.target.mask: expected a name or a position"),
        ("1.5", "batch.target: expected a name or a position"),
    ],
)
def test_forms_of_targets_that_mean_nothing_are_refused(target: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        load_config(None, [f"batch.target={target}"], text=CONFIG.replace("LOSS", "masked"))


def test_a_list_of_names_is_a_mapping_and_replaces_an_inherited_one(tmp_path: Any) -> None:
    (tmp_path / "a.yaml").write_text(DICTS.replace("LOSS", "masked"))
    (tmp_path / "b.yaml").write_text("inherit: a.yaml\nbatch: {target: [labels, mask]}\n")
    loaded = load_config(tmp_path / "a.yaml")["batch"]["target"]
    assert loaded == {"labels": "labels", "mask": "mask", "ids": "ids"}
    assert list(load_config(tmp_path / "b.yaml")["batch"]["target"]) == ["labels", "mask"]
    one = load_config(tmp_path / "a.yaml", ["batch.target=label"])
    assert one["batch"]["target"] == "label"


# --- predict --------------------------------------------------------------------------------------


class Blind(Trainer):
    """Replaces the scores of what the mask hides by the truth."""

    def predict(self, outputs: Any, batch: Any) -> Any:
        truth = F.one_hot(batch[1], 3).float()
        return torch.where(batch[2][:, None], outputs, truth)


def test_predict_may_take_the_batch() -> None:
    text = CONFIG.replace("LOSS", "masked")
    trainer = make("metrics=[{type: accuracy, target: labels}]", text=text, trainer=Blind)
    check(trainer)
    found = trainer.evaluate(trainer.train_loader, "valid")["valid/accuracy"]
    with torch.no_grad():
        is_right = trainer.model(INPUTS).argmax(1) == LABELS
    assert found == pytest.approx((is_right | ~MASK).double().mean().item())


def test_which_functions_take_the_batch() -> None:
    assert takes_batch(lambda outputs, batch: 0)
    assert takes_batch(lambda outputs, data: 0)
    assert takes_batch(lambda outputs, batch=None: 0)
    assert not takes_batch(lambda outputs: 0)
    assert not takes_batch(lambda outputs, threshold=0.5: 0)
    assert not takes_batch(lambda outputs, **settings: 0)
    assert not takes_batch(functools.partial(lambda outputs, scale: 0, scale=2))


@pytest.mark.parametrize("is_metric", [False, True])
def test_a_mask_that_would_broadcast_is_refused(
    is_metric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def squares(output: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        return (output.square() * mask).mean()

    def size(output: Tensor, *, labels: Tensor) -> Tensor:
        return output.square().mean()

    for registry in (LOSSES, METRICS):
        monkeypatch.setitem(registry.registered, "squares", squares)
        monkeypatch.setitem(registry.registered, "size", size)
    names = ("size", "squares") if is_metric else ("squares", "size")
    settings = ["model.args.n_outputs=1", "data_loader.args.batch_size=4", f"metrics=[{names[1]}]"]
    with pytest.raises(ConfigError, match=r"\.0: .*output \(4, 1\) and target \(4,\) would broad"):
        check(make(*settings, text=CONFIG.replace("LOSS", names[0])))


def test_positions_from_the_end_and_out_of_range() -> None:
    several = {"inputs": None, "target": {"label": -2, "mask": 2}, "size": None}
    image, label, mask = torch.ones(2, 3), torch.tensor([1, 2]), torch.tensor([True, False])
    args, _ = inputs_of([image, label, mask], several)
    assert [each is image for each in args] == [True]
    beyond = {**several, "target": {"label": 1, "mask": 5}}
    with pytest.raises(ConfigError, match=r"target\.mask: a batch has no item 5: .*sequence of 3"):
        target_of([image, label, mask], beyond)
    assert len(inputs_of([image, label, mask], beyond)[0]) == 2


def test_what_a_function_may_take_of_the_samples_makes_it_no_plain_one() -> None:
    def plain(output: Any, target: Any, gamma: float = 2.0) -> None: ...
    def by_weight(output: Any, target: Any, sample_weight: Any = None) -> None: ...
    def by_id(output: Any, target: Any, *, ids: Any = None) -> None: ...
    def by_batch(output: Any, target: Any, batch: Any = None) -> None: ...
    def masked(output: Any, target: Any, mask: Any) -> None: ...
    def alone(output: Any) -> None: ...

    assert DataParameters.from_function(plain).is_plain
    assert DataParameters.from_function(F.cross_entropy).is_plain
    others = (by_weight, by_id, by_batch, masked, alone)
    assert not any(DataParameters.from_function(each).is_plain for each in others)
