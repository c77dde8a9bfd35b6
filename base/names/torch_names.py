"""The allow-list of names from torch, torchvision, torchmetrics, timm and Kindling.

The modules to search are listed here. A config gives only the last part of a name, which must
resolve to an object of the right type and package. No string of a config is ever imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from base.errors import KindlingError

# fmt: off
LOSS_FUNCTIONS = frozenset((
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "cosine_embedding_loss",
    "cross_entropy", "ctc_loss", "gaussian_nll_loss", "hinge_embedding_loss", "huber_loss",
    "kl_div", "l1_loss", "linear_cross_entropy", "margin_ranking_loss", "mse_loss",
    "multi_margin_loss", "multilabel_margin_loss", "multilabel_soft_margin_loss", "nll_loss",
    "poisson_nll_loss", "smooth_l1_loss", "soft_margin_loss", "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
))
# fmt: on
UNPICKLE = ("LSUN", "LSUNClass")  # unpickle a cache file beside the data
LAYERS = ("Sequential", "Residual", "MirrorAverage", "Networks")


class Source(NamedTuple):
    """A module whose members a config may name, if ``package`` defines and ``fits`` accepts them.

    ``module`` is imported. ``fits(name, member)`` returns whether a member is of the kind.
    ``listing`` returns the members if they are not the module's variables.
    """

    module: str
    package: str
    fits: Callable[[str, Any], bool]
    listing: Callable[[Any], Mapping[str, Any]] = vars

    @property
    def place(self) -> str:
        """Return the module, and what to install if it is not there."""
        package = self.module.partition(".")[0]
        lacks = find_spec(package) is None
        return f"{self.module} (not installed: pip install {package})" if lacks else self.module

    def members(self) -> dict[str, Any]:
        """Return all allowed members; empty if the package is not installed."""
        members = self._listed().items()
        return {name: member for name, member in members if self._allows(name, member)}

    def get(self, name: str) -> Any | None:
        """Return the allowed member of that name, or None."""
        member = self._listed().get(name)
        return member if member is not None and self._allows(name, member) else None

    def _listed(self) -> Mapping[str, Any]:
        if find_spec(self.module.partition(".")[0]) is None:
            return {}
        from base.system.torch_compat import put_off_dynamo  # it imports torch

        put_off_dynamo()
        try:
            return self.listing(import_module(self.module))
        except (ImportError, RuntimeError, OSError) as error:
            text = f"{self.module} cannot be imported: {type(error).__name__}: {error}"
            raise KindlingError(text) from error

    def _allows(self, name: str, member: Any) -> bool:
        module = getattr(member, "__module__", None) or ""
        is_below = module == self.package or module.startswith(f"{self.package}.")
        return not name.startswith("_") and is_below and self.fits(name, member)


def _subclass_of(module: str, base: str, ending: str = "") -> Callable[[str, Any], bool]:
    def fits(name: str, member: Any) -> bool:
        parent = getattr(import_module(module), base)
        is_proper = inspect.isclass(member) and issubclass(member, parent) and member is not parent
        return is_proper and name.endswith(ending)

    return fits


def _is_initialiser(name: str, member: Any) -> bool:
    if not inspect.isfunction(member) or not name.endswith("_"):
        return False
    return next(iter(inspect.signature(member).parameters), None) == "tensor"


def _is_layer(name: str, member: Any) -> bool:
    return _is_module(name, member) and not name.endswith("Loss")


def _is_dataset(name: str, member: Any) -> bool:
    return _is_any_dataset(name, member) and name not in UNPICKLE


def _is_transform(name: str, member: Any) -> bool:
    return _is_module(name, member) and name != "Lambda"  # it needs a function: write a class


def _is_timm(name: str, _: Any) -> bool:
    return name == "timm"  # its argument `name` is looked up in timm's own registry


def _networks(models: Any) -> Mapping[str, Any]:
    return {name: models.get_model_builder(name) for name in models.list_models()}


def _ours(kind: str) -> Source:
    """Return the source of Kindling's data sets, loaders and transforms."""
    return Source(
        "base.datasets", "base.datasets", lambda *_: True, lambda it: it.names_of_kind(kind)
    )


_is_module = _subclass_of("torch.nn", "Module")
_NN, _SCHEDULERS = "torch.nn.modules", "torch.optim.lr_scheduler"
_is_loss_class = _subclass_of("torch.nn", "Module", ending="Loss")
_is_metric = _subclass_of("torchmetrics", "Metric")
_is_sampler = _subclass_of("torch.utils.data", "Sampler")
_is_any_dataset = _subclass_of("torch.utils.data", "Dataset")
_is_optimizer = _subclass_of("torch.optim", "Optimizer")
_is_scheduler = _subclass_of(_SCHEDULERS, "LRScheduler")
_is_callback = _subclass_of("base.callbacks", "Callback")

# torchvision is last, as importing it takes two seconds.
SOURCES: dict[str, tuple[Source, ...]] = {
    "model": (
        Source("base.network.layers", "base.network.layers", lambda name, _: name in LAYERS),
        Source("base.network.timm_models", "base.network.timm_models", _is_timm),
        Source("torch.nn", _NN, _is_layer),
        Source("torchvision.models", "torchvision.models", lambda *_: True, _networks),
    ),
    "init": (Source("torch.nn.init", "torch.nn.init", _is_initialiser),),
    "loss": (
        Source("torch.nn", _NN, _is_loss_class),
        Source("torch.nn.functional", "torch", lambda name, _: name in LOSS_FUNCTIONS),
    ),
    "metric": (Source("torchmetrics", "torchmetrics", _is_metric),),
    "data_loader": (
        _ours("data_loader"),
        Source("base.base_data_loader", "base", lambda name, _: name == "BaseDataLoader"),
        Source("torch.utils.data", "torch.utils.data", lambda name, _: name == "DataLoader"),
    ),
    "dataset": (
        _ours("dataset"),
        Source("torchvision.datasets", "torchvision.datasets", _is_dataset),
    ),
    "sampler": (
        _ours("sampler"),
        Source("torch.utils.data", "torch.utils.data", _is_sampler),
    ),
    "transform": (
        _ours("transform"),
        Source("torchvision.transforms.v2", "torchvision.transforms", _is_transform),
    ),
    "optimizer": (
        Source("torch.optim", "torch.optim", _is_optimizer),
        Source("base.training.muon", "base.training.muon", _is_optimizer),
        Source("base.training.timm_optimizers", "base.training.timm_optimizers", _is_timm),
    ),
    "lr_scheduler": (Source(_SCHEDULERS, _SCHEDULERS, _is_scheduler),),
    "callback": (Source("base.callbacks", "base.callbacks", _is_callback),),
}
