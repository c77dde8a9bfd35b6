"""Optimizers of timm by name. timm is optional and imported on use."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch.optim import Optimizer

from base.errors import ConfigError, nearest
from base.network.timm_models import INSTALL, import_timm

OF_TORCH = ("foreach", "maximize", "capturable", "differentiable", "fused")


def timm(
    params: Any, name: str, lr: float | None = None, weight_decay: float = 0.0, **options: Any
) -> Optimizer:
    """Build an optimizer of timm by name: lamb, nadamw, adopt ... of `timm.optim.list_optimizers`.

    Args:
        name: its name.
        options: its further arguments.
    """
    import_timm()
    from timm.optim import create_optimizer_v2

    made: Optimizer = create_optimizer_v2(
        params, opt=name, lr=lr, weight_decay=weight_decay, **options
    )
    return made


def _argument_faults(args: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the faults of arguments that the signature does not show, each with its key."""
    try:
        import_timm()
    except ConfigError:
        yield "", INSTALL
        return
    from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers

    name, known = args.get("name"), [str(each) for each in list_optimizers()]
    if not isinstance(name, str):
        return
    if name not in known:
        near = nearest(name, known) or f"; it has {', '.join(known)}"
        yield "name", f"timm has no optimizer {name!r}{near}"
        return
    if get_optimizer_info(name).second_order:
        yield "name", f"{name} needs gradients of gradients, which a step does not compute"
        return
    if name.startswith(("bnb", "fused")):
        return  # of another package, which may be missing
    taken = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values()):
        return
    for key in args:
        if key not in taken and key not in ("name", "lr", "weight_decay"):
            options = [each for each in taken if each != "params"]
            near = nearest(key, options) or f" (it takes {', '.join(options)})"
            yield key, f"unknown argument for {name}{near}"


timm.argument_faults = _argument_faults  # type: ignore[attr-defined]
