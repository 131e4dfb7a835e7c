"""One moment of an experiment: what is configured, what preflight found, what has happened.

    Moment(expanded, state)     worked out afresh, from a ledger that was read
    moment.later(events)        after these events were applied to its state, by the driver

Rules, decisions and reports take a moment and nothing else. What they ask of it more than once is
worked out once and ends with it: a moment refuses to answer after another event.
"""

from collections.abc import Callable, Iterable
from functools import cached_property, wraps
from typing import Any, Literal, TypeVar

from orchestrator.config import Experiment
from orchestrator.experiment.resolved import (
    ExpandedExperiment,
    ResolvedExperiment,
    distinct_models,
    resolve,
)
from orchestrator.schedule.ingredients import (
    ingredient,
    representative_checkpoint,
    selected_checkpoints,
)
from orchestrator.schedule.run_index import RunIndex, failure_of, is_trained
from orchestrator.state.state import RunState, State
from workers.types import (
    AnyEvent,
    Checkpointed,
    Cohort,
    Ingredient,
    RunSpec,
    run_id_of,
)

R = TypeVar("R")

RunPhase = Literal["done", "failed", "running", "stopped", "waiting"]


class Moment:
    def __init__(
        self,
        expanded: ExpandedExperiment,
        state: State,
        resolved: ResolvedExperiment | None = None,
        index: RunIndex | None = None,
    ) -> None:
        """`resolved` and `index` are those of an earlier moment of the same state, if any."""
        self.expanded = expanded
        self._state = state
        self._last_seq = state.last_seq
        if resolved is None and state.preflight is not None and _are_checked(expanded, state):
            resolved = resolve(expanded, state.preflight)
        self._resolved = resolved
        self._index = index
        self.answers: dict[Callable[..., Any], Any] = {}
        """Answers of functions that are decorated with `once`."""

    def later(self, events: Iterable[AnyEvent]) -> "Moment":
        """The moment after these events, which the state already holds."""
        if self._resolved is None or self._resolved.preflight is not self._state.preflight:
            return Moment(self.expanded, self._state)
        if self._index is not None:
            self._index.update(events)
        return Moment(self.expanded, self._state, self._resolved, self._index)

    # The three parts

    @property
    def config(self) -> Experiment:
        return self.expanded.experiment

    @property
    def state(self) -> State:
        assert self._state.last_seq == self._last_seq, "a moment does not outlive an event"
        return self._state

    @property
    def is_resolved(self) -> bool:
        """Whether preflight is done, of all models."""
        return self._resolved is not None

    @property
    def resolved(self) -> ResolvedExperiment:
        assert self._resolved is not None, "before preflight nothing is resolved"
        return self._resolved

    @property
    def index(self) -> RunIndex:
        assert self._state.last_seq == self._last_seq, "a moment does not outlive an event"
        if self._index is None:
            self._index = RunIndex(self.resolved, self._state)
        return self._index

    # Runs

    def run(self, run: str) -> RunState:
        """The state of a run, a stage of a base, or a moving average."""
        return self.state.run(run)

    @cached_property
    def in_flight(self) -> frozenset[str]:
        """Ids of the runs that a fleet holds or that wait for another attempt."""
        state = self.state
        held = [order.run for order in state.open.values()]
        waiting = [
            event.run for event in (*state.backoff.values(), *state.unresolved_failures.values())
        ]
        return frozenset(run for run in (*held, *waiting) if run is not None)

    @property
    def unfinished_runs(self) -> Iterable[RunSpec]:
        """Runs that neither reached their last step nor failed, in configured order."""
        return self.index.unfinished if self.is_resolved else self.expanded.runs

    @cached_property
    def all_runs_ended(self) -> bool:
        """Every run has ended, one way or another, and none is in flight."""
        if not self.is_resolved:
            return False
        if self.state.finish_reason is None and len(self.index.unfinished):
            return False
        return not any(run in self.resolved.plan_of for run in self.in_flight)

    def is_trained(self, run: RunSpec) -> bool:
        return is_trained(self.resolved, self.state, run)

    def failure_of(self, run: RunSpec) -> str | None:
        """Why nothing (more) will come of this run. None: it has not failed."""
        return failure_of(self.resolved, self.state, run)

    def phase_of(self, run: RunSpec) -> RunPhase:
        if self.is_resolved and self.is_trained(run):
            return "done"
        if self.is_resolved and self.failure_of(run) is not None:
            return "failed"
        if any(order.run == run.id and order.started_at for order in self.state.open.values()):
            return "running"
        return "stopped" if self.state.finish_reason is not None else "waiting"

    # Checkpoints

    def representative_of(self, variant: RunSpec) -> Checkpointed | None:
        """The checkpoint that represents a run, or a moving average, in tables and ensembles."""
        return representative_checkpoint(self.run(variant.id), self.config.soup)

    def ingredients(self, cohort: Cohort) -> tuple[Ingredient, ...]:
        """Candidates of a final merge, by run in configured order, a run's average after it."""
        soup, per_epoch = self.config.soup, self.resolved.steps_per_epoch
        return tuple(
            ingredient(variant.id, event, soup.metric)
            for variant in self.resolved.variants[cohort.id]
            if self.index.is_usable(variant)
            for event in selected_checkpoints(
                self.run(variant.id), soup, per_epoch[run_id_of(variant.id)]
            )
        )

    @property
    def represented_variants(self) -> tuple[tuple[RunSpec, Checkpointed], ...]:
        """Usable runs and moving averages, with the checkpoint that represents each."""
        return self.index.remembered("represented_variants", self._represented)

    def _represented(self) -> tuple[tuple[RunSpec, Checkpointed], ...]:
        return tuple(
            (variant, event)
            for variant in self.expanded.variants
            if self.index.is_usable(variant)
            and (event := self.representative_of(variant)) is not None
        )


def _are_checked(expanded: ExpandedExperiment, state: State) -> bool:
    """Whether preflight knows all models. An extension may bring more."""
    checked = state.preflight.models if state.preflight is not None else {}
    return all(key in checked for key in distinct_models(expanded.runs))


def once(function: Callable[[Moment], R]) -> Callable[[Moment], R]:
    """Decorator of a function of a moment: its answer is kept in the moment, and ends with it."""

    @wraps(function)
    def answer(moment: Moment) -> R:
        if function not in moment.answers:
            moment.answers[function] = function(moment)
        kept: R = moment.answers[function]
        return kept

    return answer
