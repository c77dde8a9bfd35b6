"""Optuna's samplers and pruners, for ``--sampler tpe`` and ``--pruner median``.

The record of the sweep is the only state: for each draw and each verdict, a study is rebuilt from
it, and the sampler is seeded by the number of the trial. So a resumed sweep draws the same.
"""

from __future__ import annotations

import inspect
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from base.config.tree import Where
from base.config.yaml_reader import read_text
from base.errors import ConfigError, UsageError, nearest
from base.sweeps.record import Sweep, TrialRecord
from base.sweeps.space import Range, Settings, Space, split_values

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.study import Study

SAME_SEED = ("QMCSampler",)
"""Samplers of one sequence, in which the study counts; the others get a seed for each trial."""


class OptunaSearch:
    """Draws settings and judges trials with Optuna.

    Args:
        sampler: such as ``tpe`` or ``tpe:n_startup_trials=5,multivariate=true``; None never draws.
        pruner: such as ``median`` or ``hyperband:min_resource=2``; None never prunes.
        direction: ``min`` or ``max``.
        n_epochs: of a trial, if it is known; Hyperband's ``max_resource``.

    Raises:
        UsageError: Optuna is missing, or there is no such sampler or pruner.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        direction: str,
        *,
        sampler: str | None = None,
        pruner: str | None = None,
        n_epochs: int | None = None,
    ) -> None:
        optuna = _import_optuna(f"--sampler {sampler}" if sampler else f"--pruner {pruner}")
        self.space, self.seed = space, seed
        self._mode = direction
        self._make_sampler = _maker(optuna.samplers, "Sampler", sampler)
        self._pruner = None
        if pruner:
            make = _maker(optuna.pruners, "Pruner", pruner)
            self._pruner = make(None, {"max_resource": n_epochs} if n_epochs else {})

    @property
    def prunes(self) -> bool:
        """Whether there is a pruner."""
        return self._pruner is not None

    def draw(self, sweep: Sweep) -> tuple[Settings, dict[str, Any]]:
        """Return the settings of the next trial, and what Optuna keeps with it.

        It draws by the trials recorded so far; those that are running count as Optuna's do.
        """
        number = len(sweep.trials)
        with _quietly():
            sampler = self._make_sampler((self.seed, number))
            study, storage = self._study(sweep, sampler)
            trial = study.ask()
            settings = {each.key: _suggest(trial, each) for each in self.space}
            identity = storage.get_study_id_from_name(study.study_name)
            sweep.attributes = dict(storage.get_study_system_attrs(identity))
            kept = study.get_trials(deepcopy=False)[number].system_attrs
        return settings, dict(kept)

    def is_to_stop(self, sweep: Sweep, trial: TrialRecord) -> bool:
        """Return whether the pruner stops a running trial after its last recorded value."""
        if self._pruner is None:
            return False
        place = trial.number - 1
        with _quietly():
            study, _ = self._study(sweep, None)
            judged = study.get_trials(deepcopy=True)[place]
            stops = bool(self._pruner.prune(study, judged))
            trial.attributes = dict(study.get_trials(deepcopy=False)[place].system_attrs)
        return stops

    def _study(self, sweep: Sweep, sampler: Any) -> tuple[Study, BaseStorage]:
        """Return a study that holds the trials of a sweep in their order."""
        import optuna

        storage = optuna.storages.InMemoryStorage()
        study = optuna.create_study(
            storage=storage,
            sampler=sampler or optuna.samplers.RandomSampler(seed=0),
            pruner=self._pruner or optuna.pruners.NopPruner(),
            study_name="sweep",
            direction="minimize" if self._mode == "min" else "maximize",
        )
        identity = storage.get_study_id_from_name("sweep")
        for name, value in sweep.attributes.items():
            storage.set_study_system_attr(identity, name, value)
        distributions = {each.key: _distribution(each) for each in self.space}
        for trial in sweep.trials:
            study.add_trial(self._frozen(trial, distributions))
        return study, storage

    def _frozen(self, trial: TrialRecord, distributions: dict[str, BaseDistribution]) -> Any:
        import optuna

        states = optuna.trial.TrialState
        has_value = trial.value is not None
        state = {
            "finished": states.COMPLETE if has_value else states.FAIL,
            "pruned": states.PRUNED,
            "failed": states.FAIL,
        }.get(trial.state, states.RUNNING)
        values = {
            int(epoch): math.nan if value is None else value
            for epoch, value in trial.values.items()
        }
        last = values[max(values)] if values else None
        return optuna.trial.create_trial(
            state=state,
            value={states.COMPLETE: trial.value, states.PRUNED: last}.get(state),
            params={each.key: _parameter(each, trial.settings[each.key]) for each in self.space},
            distributions=distributions,
            intermediate_values=values,
            system_attrs=trial.attributes,
        )


def _import_optuna(asked_by: str) -> Any:
    try:
        import optuna
    except ImportError as error:
        text = f"needs Optuna, which cannot be imported ({error})"
        install = "install it with pip install -r requirements-extra.txt"
        raise UsageError(f"{asked_by}: {text}; {install}") from error
    return optuna


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence Optuna's log of each trial, and its warnings about experimental classes."""
    logger = logging.getLogger("optuna")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _maker(module: Any, ending: str, text: str | None) -> Callable[..., Any]:
    """Return a function that builds the class that a text names.

    It takes the seed of the sweep and the number of the trial, and further arguments; those that
    the class does not have are left out.
    """
    if text is None:
        return lambda *_: None
    option = f"--{ending.lower()}"
    name, _, rest = text.partition(":")
    offered = {each.removesuffix(ending).lower(): each for each in _offered(module, ending)}
    word = name.lower().replace("_", "").replace("-", "").removesuffix(ending.lower())
    if word not in offered:
        known = ", ".join(sorted(offered))
        raise UsageError(f"{option} {name}: Optuna has {known}{nearest(word, offered)}")
    made = getattr(module, offered[word])
    takes = inspect.signature(made).parameters
    given = _arguments(rest, f"{option} {text}", list(takes))

    def make(
        drawn_by: tuple[int, int] | None = None, further: Mapping[str, Any] | None = None
    ) -> Any:
        more = dict(further or {})
        if drawn_by is not None:
            seed, number = drawn_by
            step = 0 if offered[word] in SAME_SEED else 7919
            more["seed"] = (seed + step * number) % 2**32
        more = {key: value for key, value in more.items() if key in takes}
        try:
            with _quietly():
                return made(**{**more, **given})
        except (TypeError, ValueError, ImportError) as error:
            raise UsageError(f"{option} {text}: {error}") from error

    make()  # reports errors before the sweep begins
    return make


def _offered(module: Any, ending: str) -> Iterator[str]:
    """Yield the classes that can be built from plain values."""
    for name in dir(module):
        if name.endswith(ending) and not name.startswith(
            ("Base", "PartialFixed", "Patient", "Gri")
        ):
            yield name


def _arguments(text: str, where: str, known: list[str]) -> dict[str, Any]:
    """Read ``n_startup_trials=5,multivariate=true``."""
    given: dict[str, Any] = {}
    for part in filter(None, split_values(text)):
        key, equals, value = part.partition("=")
        if not equals or key not in known:
            hint = nearest(key, known) or f" (there are {', '.join(known)})"
            raise UsageError(f"{where}: no argument {key!r}{hint}")
        try:
            given[key] = read_text(value, Where(where), []).plain()
        except ConfigError as error:
            raise UsageError(str(error)) from error
    return given


def _distribution(each: Any) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if not isinstance(each, Range):
        return CategoricalDistribution(each.values)
    if each.is_whole:
        return IntDistribution(int(each.low), int(each.high), log=each.is_log)
    return FloatDistribution(each.low, each.high, log=each.is_log)


def _suggest(trial: Any, each: Any) -> str:
    """Draw a value as after ``--set``; numbers are rounded to four digits."""
    if not isinstance(each, Range):
        return str(trial.suggest_categorical(each.key, each.values))
    suggest = trial.suggest_int if each.is_whole else trial.suggest_float
    limit = int if each.is_whole else float
    return each.text(suggest(each.key, limit(each.low), limit(each.high), log=each.is_log))


def _parameter(each: Any, text: str) -> Any:
    if not isinstance(each, Range):
        return text
    return int(text) if each.is_whole else float(text)
