"""The layers of a model from input to output, for rates that decay from layer to layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from torch import nn

from base.network.layers import Networks, Residual
from base.network.layers import Sequential as OurSequential
from base.network.patterns import NoMatch, ParameterNames

# Lists of layers, which are opened. Subclasses may call theirs in any order; these are blocks.
LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, OurSequential)

IN_ORDER = "the order of its modules"

Layer = list[str]  # the names of its parameters


class LayerOrder(NamedTuple):
    """The layers of a model, from input to output, and where their order comes from."""

    layers: list[Layer]
    source: str

    def text(self) -> str:
        """Return a description for the header of a run."""
        names = [_common_name(layer) for layer in self.layers]
        n = len(names)
        shown = []
        for number in [0, 1, 2, n - 1] if n > 4 else range(n):
            name = names[number]
            # a name that another layer is a part of, too
            if any(f"{other}.".startswith(f"{name}.") for other in names if other != name):
                name = self.layers[number][0].rpartition(".")[0] or name
            shown.append(name)
        shown[3:3] = ["..."] if n > 4 else []
        return f"{n}, by {self.source}: {', '.join(shown)}"


def layer_order(model: nn.Module, claimed: Collection[str]) -> LayerOrder:
    """Return the layers of a model.

    The model declares them (``layer_order``), or timm knows them (``group_matcher``). Otherwise
    they are the modules in the order of their definition: `nn.Sequential` and other lists are
    replaced by their elements, and a module that holds a list of equal blocks by its children.
    What has no matrix (a norm, a scale) belongs to the layer before it in its list. Parameters that
    a model holds itself, such as position embeddings, belong to the first layer.

    Args:
        claimed: the parameters in question; of several networks, only theirs count.

    Raises:
        NoMatch: a pattern of ``layer_order`` matches no parameter.
    """
    if known := _known_layers(model):
        return known
    owned = {id(parameter): name for name, parameter in model.named_parameters()}
    children, sources = list(model.named_children()), {IN_ORDER}
    if isinstance(model, Networks) or any(_declares(network) for _, network in children):
        children = [
            (name, network)
            for name, network in children
            if any(each.startswith(f"{name}.") for each in claimed)
        ]
        sources = {_source_of(network) for _, network in children}
    first: Layer = []
    layers = _opened(model, [network for _, network in children], owned, first)
    layers = [[*first, *layers[0]], *layers[1:]] if layers else [first]
    return LayerOrder(layers, " and ".join(sorted(sources)))


def _declares(network: nn.Module) -> bool:
    is_of_timm = callable(getattr(network, "group_matcher", None))
    return bool(getattr(network, "layer_order", None)) or is_of_timm


def _source_of(network: nn.Module) -> str:
    if getattr(network, "layer_order", None):
        return "layer_order"
    return "timm" if _declares(network) else IN_ORDER


def _known_layers(network: nn.Module) -> LayerOrder | None:
    """Return the layers that a network declares, or that timm knows; else None."""
    if not _declares(network):
        return None
    order = getattr(network, "layer_order", None)
    layers = _declared(network, order) if order else _of_timm(network)
    return LayerOrder(layers, _source_of(network))


def _declared(model: nn.Module, order: Any) -> list[Layer]:
    layers, names = [], ParameterNames(model)
    for number, pattern in enumerate(order):
        try:
            layers.append(names.matching(pattern))
        except NoMatch as error:
            raise NoMatch(f"{type(model).__name__}.layer_order[{number}]: {error}") from error
    return layers


def _of_timm(model: nn.Module) -> list[Layer]:
    """Return the layers that timm's `param_groups_layer_decay` distinguishes."""
    from timm.models import group_parameters

    matcher = model.group_matcher(coarse=False)  # type: ignore[operator]
    numbers: dict[str, int] = group_parameters(model, matcher, reverse=True)
    layers: list[Layer] = [[] for _ in range(max(numbers.values()) + 1)]
    for name, _ in model.named_parameters():
        layers[numbers.get(name, len(layers) - 1)].append(name)
    return layers


# --- By the order of the modules ------------------------------------------------------------------


def _opened(
    module: nn.Module, children: Iterable[nn.Module], owned: dict[int, str], first: Layer
) -> list[Layer]:
    """Return the layers of a module that is replaced by its children.

    Args:
        owned: the names of parameters by their identity; those in a layer are removed.
        first: receives the parameters that belong to the first layer.
    """
    first += _take(module.parameters(recurse=False), owned)
    parts: list[Layer] = []
    has_matrix: list[bool] = []
    is_list = type(module) in LISTS
    for child in children:
        if known := _known_layers(child):
            inside = dict(child.named_parameters())
            inner = [_take([inside[name] for name in layer], owned) for layer in known.layers]
        elif type(child) in LISTS or (not is_list and _holds_equal_blocks(child)):
            inner = _opened(child, child.children(), owned, first)
        else:
            has_matrix.append(any(p.dim() > 1 for p in child.parameters()))
            parts.append(_take(child.parameters(), owned))
            continue
        parts += inner
        has_matrix += [True] * len(inner)
    return _merged(parts, has_matrix)


def _take(parameters: Iterable[nn.Parameter], owned: dict[int, str]) -> Layer:
    return [owned.pop(id(parameter)) for parameter in parameters if id(parameter) in owned]


def _merged(parts: list[Layer], has_matrix: list[bool]) -> list[Layer]:
    """Merge each part without a matrix into the one before it, or the first into the next."""
    layers: list[Layer] = []
    waiting: Layer = []
    for part, is_whole in zip(parts, has_matrix, strict=True):
        if not part:
            continue
        if is_whole:
            layers.append([*waiting, *part])
            waiting = []
        elif layers:
            layers[-1] += part
        else:
            waiting += part
    return [*layers, waiting] if waiting else layers


def _holds_equal_blocks(module: nn.Module) -> bool:
    """Return whether a list in a module has two blocks of the same class and the same shapes.

    The blocks of a transformer's encoder are equal; those of a branch of a block differ.
    """
    if isinstance(module, Residual):
        return False
    for each in module.modules():
        if type(each) not in LISTS:
            continue
        kinds = [
            (type(block), tuple(p.shape for p in block.parameters()))
            for block in each.children()
            if next(block.children(), None) is not None
        ]
        kinds = [kind for kind in kinds if kind[1]]
        if len(set(kinds)) < len(kinds):
            return True
    return False


def _common_name(layer: Layer) -> str:
    """Return the longest beginning that the names of a layer share, or the first name's module."""
    parts = [name.split(".") for name in layer]
    shared = []
    for words in zip(*parts, strict=False):
        if len(set(words)) > 1:
            break
        shared.append(words[0])
    return ".".join(shared) or layer[0].rpartition(".")[0] or layer[0]
