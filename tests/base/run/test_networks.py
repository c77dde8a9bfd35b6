"""Several networks, each with an optimizer of its own; a WGAN-GP as a user would write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import NETWORKS, assert_resumes, assert_same, batches, make, train_in, weights

from base.errors import ConfigError, TrainingError
from base.names.registry import MODELS
from base.system.torch_compat import AUTOCAST_CACHE
from base.training.parameter_groups import learning_rates
from trainer.trainer import Trainer


class Pair(nn.Module):
    """A generator of points in the plane and a critic of them."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        self.critic = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))


class WganTrainer(Trainer):
    """Wasserstein GAN with gradient penalty (Gulrajani et al., 2017)."""

    def train_step(self, batch: Any) -> dict[str, Any]:
        generator, critic = self.model.generator, self.model.critic
        real = batch[0].flatten(1)
        fake = generator(torch.randn(len(real), 3, device=self.device))

        share = torch.rand(len(real), 1, device=self.device)
        between = (share * real + (1 - share) * fake.detach().float()).requires_grad_()
        slope = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[0]
        penalty = 10 * (slope.norm(dim=1) - 1).square().mean()
        distance = critic(real).mean() - critic(fake.detach()).mean()
        self.backward(penalty - distance, only="critic")
        self.update("critic")

        loss = -critic(fake).mean()
        self.backward(loss, only="generator")
        self.update("generator")
        return {"loss": loss, "distance": distance, "penalty": penalty}


@pytest.fixture(autouse=True)
def _pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.registered, "Pair", Pair)


def networks(*overrides: str, trainer: Any = WganTrainer) -> Any:
    return make(*overrides, trainer=trainer, text=NETWORKS)


def a_loss(trainer: Any) -> Tensor:
    real = next(batches(trainer))[0].flatten(1)
    fake = trainer.model.generator(torch.ones(4, 3))
    return trainer.model.critic(fake).mean() + trainer.model.critic(real).square().mean()


@pytest.mark.parametrize(("only", "other"), [("critic", "generator"), ("generator", "critic")])
def test_a_loss_for_one_network_leaves_the_other_untouched(only: str, other: str) -> None:
    trainer = networks()
    ours = list(getattr(trainer.model, only).parameters())
    expected = torch.autograd.grad(a_loss(trainer), ours)
    trainer.backward(a_loss(trainer), only=only)
    for parameter, gradient in zip(ours, expected, strict=True):
        assert torch.equal(parameter.grad, gradient)
    assert all(p.grad is None for p in getattr(trainer.model, other).parameters())


@pytest.mark.parametrize(("only", "other"), [("critic", "generator"), ("generator", "critic")])
def test_an_update_steps_one_network(only: str, other: str) -> None:
    trainer = networks()
    trainer.backward(a_loss(trainer), only="critic", retain_graph=True)
    trainer.backward(a_loss(trainer), only="generator")
    start = weights(trainer)
    trainer.update(only)
    moved = {name.split(".")[0] for name, w in weights(trainer).items() if not w.equal(start[name])}
    assert moved == {only}
    assert all(p.grad is None for p in getattr(trainer.model, only).parameters())
    assert all(p.grad is not None for p in getattr(trainer.model, other).parameters())


def test_a_network_that_is_frozen_for_a_while_is_left_out() -> None:
    """As many write it: the critic needs no gradients while the generator learns."""
    trainer = networks()
    trainer.model.critic[0].requires_grad_(False)
    trainer.backward(a_loss(trainer), only="critic")
    assert trainer.model.critic[0].weight.grad is None
    assert trainer.model.critic[2].weight.grad is not None


def test_a_tool_without_a_name_asks_for_it() -> None:
    trainer = networks()
    with pytest.raises(TrainingError, match="say which of the networks: generator, critic"):
        trainer.backward(a_loss(trainer))
    with pytest.raises(TrainingError, match="say which of the networks: generator, critic"):
        trainer.update()


def test_a_network_that_is_not_there_is_reported() -> None:
    trainer = networks()
    with pytest.raises(TrainingError, match=r"no optimizer 'critik'.*did you mean 'critic'"):
        trainer.backward(a_loss(trainer), only="critik")
    with pytest.raises(TrainingError, match=r"no optimizer 'critik'.*did you mean 'critic'"):
        trainer.update("critik")


def by_hand(precision: torch.dtype, k: int, clip: float, n_epochs: int = 2) -> Pair:
    """The same training in plain torch."""
    trainer = networks()
    model, data = trainer.model, list(batches(trainer))
    critic, generator = model.critic, model.generator
    best = {
        "generator": torch.optim.Adam(generator.parameters(), lr=0.01),
        "critic": torch.optim.Adam(critic.parameters(), lr=0.02),
    }
    lowered = precision != torch.float32

    def half() -> Any:
        return torch.autocast("cpu", precision, enabled=lowered, cache_enabled=AUTOCAST_CACHE)

    def finish(name: str) -> None:
        nn.utils.clip_grad_norm_(getattr(model, name).parameters(), clip)
        best[name].step()
        best[name].zero_grad()

    for epoch in range(n_epochs):
        for number, batch in enumerate(data[5 * epoch : 5 * epoch + 5]):
            size = min(k, 5 - number // k * k)
            is_last = number % k == size - 1
            with half():
                real = batch[0].flatten(1)
                fake = generator(torch.randn(len(real), 3))
                share = torch.rand(len(real), 1)
                between = (share * real + (1 - share) * fake.detach().float()).requires_grad_()
                slope = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[0]
                penalty = 10 * (slope.norm(dim=1) - 1).square().mean()
                loss = penalty - (critic(real).mean() - critic(fake.detach()).mean())
            (loss / size).backward(inputs=list(critic.parameters()))
            if is_last:
                finish("critic")
            with half():
                loss = -critic(fake).mean()
            (loss / size).backward(inputs=list(generator.parameters()))
            if is_last:
                finish("generator")
    return model


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("k", [1, 2])
def test_a_wgan_trains_as_by_hand(precision: str, k: int) -> None:
    clip = 0.5
    torch.manual_seed(3)
    expected = by_hand({"fp32": torch.float32, "bf16": torch.bfloat16}[precision], k, clip)
    trainer = networks(
        f"memory={{precision: {precision}, accumulate: {k}}}",
        f"optimizers.critic.clip_norm={clip}",
        f"optimizers.generator.clip_norm={clip}",
    )
    values = train_in(trainer)
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(weights(trainer)[name], parameter.detach(), msg=name)
    assert {"train/distance", "train/penalty", "train/critic_grad_norm"} <= set(values)
    assert {"lr/generator", "lr/critic"} <= set(learning_rates(trainer.optimizers))


@pytest.mark.parametrize("stop_at", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_wgan_resumes_to_the_same_bits(precision: str, stop_at: int, tmp_path: Path) -> None:
    options = [
        f"memory={{precision: {precision}, accumulate: 2}}",
        "optimizers.critic.clip_norm=0.5",
        "optimizers.generator.lr_scheduler={type: CosineAnnealingLR, every: step}",
        "trainer.ema={decay: 0.9}",
    ]
    assert_resumes(tmp_path, *options, trainer=WganTrainer, text=NETWORKS, stop_at=stop_at)


def test_each_network_has_its_own_schedule() -> None:
    trainer = networks(
        "optimizers.generator.lr_scheduler={type: ExponentialLR, args: {gamma: 0.5}}",
        "optimizers.critic.lr_scheduler={type: ExponentialLR, args: {gamma: 0.9}, every: step}",
    )
    train_in(trainer)
    rates = learning_rates(trainer.optimizers)
    assert rates["lr/generator"] == 0.01 * 0.5**2
    assert rates["lr/critic"] == pytest.approx(0.02 * 0.9**10)


def test_a_critic_that_is_trained_more_often() -> None:
    class Often(WganTrainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            self.backward(a_loss(self), only="critic")
            self.update("critic")
            if self.progress.step % 3 == 2:
                self.backward(a_loss(self), only="generator")
                self.update("generator")
            return {"loss": torch.zeros(())}

    trainer = networks(trainer=Often)
    train_in(trainer)
    counts = {
        name: int(next(iter(one.state.values()))["step"])
        for name, one in trainer.optimizers.items()
    }
    assert counts == {"critic": 10, "generator": 3}


def test_a_loss_of_one_network_that_is_not_finite_stops_before_any_step() -> None:
    class Broken(WganTrainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            self.seen = weights(self)
            factor = float("nan") if self.progress.step == 4 else 1.0
            self.backward(a_loss(self), only="critic")
            self.backward(factor * a_loss(self), only="generator")
            self.update("critic")
            self.update("generator")
            return {"loss": torch.zeros(())}

    trainer = networks(trainer=Broken)
    with pytest.raises(TrainingError, match=r"not finite at step 5 \(lr/generator 0.01, lr/critic"):
        train_in(trainer)
    assert_same(weights(trainer), trainer.seen)


@pytest.mark.parametrize(
    ("critic", "message"),
    [
        ("'*'", "optimizers.critic.params: what 'generator' claims too: generator.0.weight"),
        ("'critic.0.*'", "no optimizer trains critic.2.weight, critic.2.bias"),
        ("'critc.*'", "optimizers.critic.params: no parameter matches"),
    ],
)
def test_patterns_that_do_not_divide_the_parameters(critic: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.").replace(r"\.*", ".*")):
        networks(f"optimizers.critic.params={critic}")


def test_the_default_step_with_several_networks_is_reported() -> None:
    text = NETWORKS.replace(
        "type: Pair", "type: MLP, args: {n_inputs: 2, hidden: [2], n_outputs: 2}"
    )
    two = (
        "optimizers={one: {type: SGD, args: {lr: 1}, params: 'hidden.*'}, "
        "two: {type: SGD, args: {lr: 1}, params: 'head.*'}}"
    )
    with pytest.raises(TrainingError, match="which of the networks: one, two"):
        train_in(make(two, "loss=cross_entropy", text=text))


def test_one_of_several_networks_may_be_frozen_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.registered, "Pair", Pair)
    make("freeze={match: 'generator.*', until: 2 steps}", trainer=WganTrainer, text=NETWORKS)
    with pytest.raises(ConfigError, match="all are frozen until 2 steps"):
        make("freeze={match: '*', until: 2 steps}", trainer=WganTrainer, text=NETWORKS)
