"""What the schedule asks of every run, kept up to date run by run: a fleet may have thousands.

    events of a group -> the runs they are about -> only these are looked at again

A turn of the driver then costs what happened in it, however many runs there are.
"""

import bisect
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from orchestrator.experiment.resolved import ResolvedExperiment, run_and_ema
from orchestrator.schedule.ingredients import (
    ingredient,
    representative_checkpoint,
    selected_checkpoints,
)
from orchestrator.state.state import MergeState, RunState, State
from workers.types import (
    AnyEvent,
    BaseOrder,
    Checkpoint,
    Checkpointed,
    Ingredient,
    MergeOpened,
    RunSpec,
    run_id_of,
)

V = TypeVar("V")

CHANGING_ALL = frozenset({"opened", "preflighted", "finish_requested", "extended", "revived"})
"""Events after which every run may have ended, or go on."""
CHANGING_A_RUN = frozenset({"checkpoint", "trained", "gave_up", "failed", "damaged", "retired"})


def is_trained(resolved: ResolvedExperiment, state: State, run: RunSpec) -> bool:
    """At its last step, or at the one where its patience ended."""
    progress = state.run(run.id)
    return progress.ended_early or progress.trained_to >= resolved.num_steps[run.id]


def failure_of(resolved: ResolvedExperiment, state: State, run: RunSpec) -> str | None:
    """Why nothing (more) will come of this run: it was given up, or its base was."""
    failed = state.run(run.id).failed
    if failed is not None or not state.gave_up or is_trained(resolved, state, run):
        return failed
    plan = resolved.plan_of[run.id]
    for stage in plan.stages:
        reason = state.run(stage.id).failed
        if reason is not None:
            return f"its base failed in the {stage.role}: {reason}"
    reasons = (state.gave_up.get(BaseOrder.id_of(base)) for base in (plan.fresh, plan.final))
    return next((f"its base failed: {reason}" for reason in reasons if reason is not None), None)


class ByRun(Generic[V]):
    """Values of the runs that have one, in configured order."""

    def __init__(self, positions: dict[str, int]) -> None:
        self._positions = positions
        self._order: list[tuple[int, str]] = []
        self._values: dict[str, V] = {}

    def set(self, run: str, value: V | None) -> None:
        """None: the run has no value."""
        place = (self._positions[run], run)
        if value is None:
            if self._values.pop(run, None) is not None:
                del self._order[bisect.bisect_left(self._order, place)]
            return
        if run not in self._values:
            bisect.insort(self._order, place)
        self._values[run] = value

    def __iter__(self) -> Iterator[V]:
        return (self._values[run] for _, run in self._order)

    def __len__(self) -> int:
        return len(self._order)


class RunIndex:
    """The runs of one experiment as its state has them. `update` must be called after each group of
    events."""

    def __init__(self, resolved: ResolvedExperiment, state: State) -> None:
        self._resolved, self._state = resolved, state
        expanded = resolved.expanded
        self._soup = expanded.experiment.soup
        self._stages = tuple(stage.id for plan in resolved.plans for stage in plan.stages)
        self._variants = {variant.id: variant for variant in expanded.variants}
        self._runs = {run.id: run for run in expanded.runs}
        self._owners = (*self._stages, *self._variants)
        self._newest: dict[str, Ingredient] = {}
        self._rebuild()

    def _rebuild(self) -> None:
        positions = {owner: place for place, owner in enumerate(self._owners)}
        self.unfinished: ByRun[RunSpec] = ByRun(positions)
        """Runs that neither reached their last step nor failed."""
        self.superseded: ByRun[tuple[Checkpoint, ...]] = ByRun(positions)
        """Checkpoints of runs, averages and stages that nothing can choose any more."""
        self.duplicates: ByRun[tuple[Checkpoint, ...]] = ByRun(positions)
        self.unscored: ByRun[tuple[RunSpec, Checkpointed]] = ByRun(positions)
        """Usable runs and averages whose representative lacks a score on a report split."""
        self.steps: Counter[str] = Counter()
        """By cohort: steps evaluated so far, of all its runs."""
        self._steps_of: dict[str, int] = {}
        self.incomplete = {
            name for name, merge in self._state.unmixed.items() if not self._is_complete(merge)
        }
        """Merges without a soup that have lost an ingredient: it is deleted or corrupt."""
        self.answers: dict[Hashable, Any] = {}
        """What was derived from all runs; valid until one of them changes."""
        self._checkpoint_ids: dict[str, tuple[str, ...]] = {}
        for owner in self._owners:
            self._look_at(owner)

    def update(self, events: Iterable[AnyEvent]) -> None:
        """Look again at the runs that these events, already applied to the state, are about."""
        touched: dict[str, None] = {}
        lost: set[str] = set()
        for event in events:
            if self._changes_all(event):
                return self._rebuild()
            if event.kind in CHANGING_A_RUN:
                self.answers.clear()
            if event.kind in ("failed", "damaged") and any(_dropped(event)):
                self._checkpoint_ids.clear()  # a corrupt one is written again, by another attempt
            elif event.kind == "mixed":
                self._checkpoint_ids.pop(event.merge, None)
            touched |= dict.fromkeys(_owners(event))
            lost.update(checkpoint.rpartition("-")[0] for checkpoint in _dropped(event))
        for owner in touched:
            if owner in self._stages:
                self._look_at(owner)
            elif (run := self._runs.get(run_id_of(owner))) is not None:
                for variant in run_and_ema(run):  # they end, and are rewound, together
                    self._look_at(variant.id)
        self._look_at_merges(lost)

    def _look_at_merges(self, lost: set[str]) -> None:
        """`lost` are names of checkpoints. An ingredient may come back, so incomplete merges are
        looked at again."""
        for name, merge in self._state.unmixed.items():
            if name in self.incomplete or any(other in merge.opened.scores for other in lost):
                self.incomplete.discard(name)
                if not self._is_complete(merge):
                    self.incomplete.add(name)

    def _is_complete(self, merge: MergeState) -> bool:
        return all(self._state.is_known_checkpoint(i.name) for i in merge.opened.ingredients)

    def _changes_all(self, event: AnyEvent) -> bool:
        """A base that was given up, or a stage of one, ends all its runs."""
        if event.kind == "gave_up":
            return event.run is None or event.run in self._stages
        return event.kind in CHANGING_ALL

    def _look_at(self, owner: str) -> None:
        progress = self._state.run(owner)
        self.superseded.set(owner, self._superseded(owner, progress) or None)
        self.duplicates.set(owner, progress.duplicates or None)
        if owner in self._runs:
            run = self._runs[owner]
            self.unfinished.set(owner, run if self._is_unfinished(run) else None)
            cohort = self._resolved.cohort_of[owner].id
            self.steps[cohort] += progress.evaluated_to - self._steps_of.get(owner, 0)
            self._steps_of[owner] = progress.evaluated_to
        if owner in self._variants:
            self.unscored.set(owner, self._unscored(self._variants[owner], progress))

    def _is_unfinished(self, run: RunSpec) -> bool:
        resolved, state = self._resolved, self._state
        return not is_trained(resolved, state, run) and failure_of(resolved, state, run) is None

    def is_usable(self, variant: RunSpec) -> bool:
        """Trained, or stopped with a scored checkpoint; a failed run never. A moving average is
        usable if its run is."""
        resolved, state = self._resolved, self._state
        if not state.run(variant.id).scored:
            return False
        run = resolved.run_of[variant.id]
        ended = is_trained(resolved, state, run) or state.finish_reason is not None
        return ended and failure_of(resolved, state, run) is None

    def _unscored(
        self, variant: RunSpec, progress: RunState
    ) -> tuple[RunSpec, Checkpointed] | None:
        if not self.is_usable(variant):
            return None
        event = representative_checkpoint(progress, self._soup)
        assert event is not None, "a usable run has a scored checkpoint"
        scores = self._state.scores.get(event.checkpoint.name, {})
        lacks = any(split not in scores for split in self._resolved.report_splits)
        return (variant, event) if lacks else None

    def _superseded(self, owner: str, progress: RunState) -> tuple[Checkpoint, ...]:
        if len(progress.checkpoints) < 2:
            return ()
        kept = self._kept(owner, progress)
        return tuple(
            event.checkpoint for event in progress.checkpoints if event.checkpoint.id not in kept
        )

    def _kept(self, owner: str, progress: RunState) -> set[str]:
        kept = {progress.checkpoints[-1].checkpoint.id}
        if owner in self._stages:
            return kept
        per_epoch = self._resolved.steps_per_epoch[run_id_of(owner)]
        chosen = selected_checkpoints(progress, self._soup, per_epoch)
        kept |= {event.checkpoint.id for event in (*chosen, *progress.scored[-1:])}
        event = representative_checkpoint(progress, self._soup)
        return kept if event is None else kept | {event.checkpoint.id}

    def newest_ingredient(self, variant: RunSpec) -> Ingredient | None:
        """The newest scored checkpoint as an ingredient; the same object while it is the newest,
        because many rounds hold it."""
        scored = self._state.run(variant.id).scored
        if not scored:
            return None
        ready = self._newest.get(variant.id)
        if ready is None or ready.name != scored[-1].checkpoint.name:
            ready = ingredient(variant.id, scored[-1], self._soup.metric)
            self._newest[variant.id] = ready
        return ready

    def checkpoint_ids(self, opened: MergeOpened) -> tuple[str, ...]:
        """Ids of all ingredients of a merge; long, and the same for each of its tastes."""
        if opened.merge not in self._checkpoint_ids:
            names = (ingredient.name for ingredient in opened.ingredients)
            places = self._state.checkpoints_named(names)
            self._checkpoint_ids[opened.merge] = tuple(place.id for place in places)
        return self._checkpoint_ids[opened.merge]

    def remembered(self, key: Hashable, compute: Callable[[], V]) -> V:
        """What `compute` derives from all runs, until one of them changes."""
        if key not in self.answers:
            self.answers[key] = compute()
        answer: V = self.answers[key]
        return answer


def _owners(event: AnyEvent) -> Iterator[str]:
    """Runs, stages and moving averages whose state or scores the event may have changed."""
    if event.kind == "checkpoint":
        yield event.checkpoint.name.partition("/")[0]
    elif event.kind == "scored":
        yield event.checkpoint.partition("/")[0]
    elif event.kind == "retired":
        yield from (checkpoint.partition("/")[0] for checkpoint in event.checkpoints)
    elif event.kind in ("failed", "damaged"):
        yield from (checkpoint.partition("/")[0] for checkpoint in _dropped(event))
    elif event.kind in ("evaluated", "trained", "gave_up") and event.run is not None:
        yield event.run


def _dropped(event: AnyEvent) -> Iterable[str]:
    """Ids of checkpoints that are known no longer."""
    if event.kind == "retired":
        return event.checkpoints
    if event.kind in ("failed", "damaged") and event.checkpoint is not None:
        return (event.checkpoint,)
    return ()
