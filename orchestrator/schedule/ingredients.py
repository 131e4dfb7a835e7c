"""Which checkpoints may be mixed, and where they lie."""

from collections.abc import Iterable, Sequence

from orchestrator.config.sections import SoupConfig
from orchestrator.experiment.resolved import ExpandedExperiment, ResolvedExperiment
from orchestrator.schedule.training import failure, is_trained
from orchestrator.state.state import RunState, State
from workers.types import Checkpoint, Checkpointed, Cohort, Ingredient, Metric, RunSpec, run_id_of


def selection(event: Checkpointed, metric: Metric) -> float:
    assert event.score is not None
    return event.score.selection(metric)


def ranked(run: RunState, metric: Metric) -> tuple[Checkpointed, ...]:
    """Scored checkpoints, best first; of equals the later one."""
    if metric not in run.known:
        order = sorted(run.scored, key=lambda e: (-selection(e, metric), -e.checkpoint.step))
        run.known[metric] = tuple(order)
    found: tuple[Checkpointed, ...] = run.known[metric]
    return found


def best(run: RunState, metric: Metric) -> Checkpointed | None:
    """The best checkpoint on the selection split."""
    return next(iter(ranked(run, metric)), None)


def selected_checkpoints(
    run: RunState, soup: SoupConfig, steps_per_epoch: int
) -> tuple[Checkpointed, ...]:
    """The track's ingredients under soup.ingredients: best, last, all, top-K or a list of epochs.

    What ended before the first of the epochs gives its last scored checkpoint instead.
    """
    if soup.ingredients == "all":
        return run.scored
    if soup.ingredients == "last":
        return run.scored[-1:]
    if not isinstance(soup.ingredients, str):
        steps = {epoch * steps_per_epoch for epoch in soup.ingredients}
        return tuple(e for e in run.scored if e.checkpoint.step in steps) or run.scored[-1:]
    count = 1 if soup.ingredients == "best" else int(soup.ingredients.removeprefix("top-"))
    return tuple(sorted(ranked(run, soup.metric)[:count], key=lambda e: e.checkpoint.step))


def representative_checkpoint(program: ExpandedExperiment, run: RunState) -> Checkpointed | None:
    """The checkpoint that stands for the run, or for its average, in tables and ensembles."""
    soup = program.experiment.soup
    if soup.ingredients == "last":
        return run.scored[-1] if run.scored else None
    return best(run, soup.metric)


def usable_variants(
    state: State, resolved: ResolvedExperiment, tracks: Iterable[RunSpec]
) -> tuple[RunSpec, ...]:
    """Tracks whose run ended well: trained, or stopped with something to show; failed ones never.
    A moving average is what its run is."""
    return tuple(
        track
        for track in tracks
        if state.run(track.id).scored and _ended_well(state, resolved, resolved.run_of[track.id])
    )


def _ended_well(state: State, resolved: ResolvedExperiment, run: RunSpec) -> bool:
    over = is_trained(state, resolved, run) or state.finish_reason is not None
    return over and failure(state, resolved, run) is None


def ingredients(
    program: ExpandedExperiment, state: State, resolved: ResolvedExperiment, cohort: Cohort
) -> tuple[Ingredient, ...]:
    """Candidates of a final merge, by run in configured order, a run's average after itself."""
    soup = program.experiment.soup
    return tuple(
        ingredient(track, known, event, soup.metric)
        for track in usable_variants(state, resolved, resolved.variants[cohort.id])
        for known in (state.run(track.id),)
        for event in selected_checkpoints(
            known, soup, resolved.steps_per_epoch[run_id_of(track.id)]
        )
    )


def ingredient(run: RunSpec, known: RunState, event: Checkpointed, metric: Metric) -> Ingredient:
    """The same object for every round and merge that it takes part in: there may be many."""
    name = event.checkpoint.name
    if name not in known.known:
        score = selection(event, metric)
        known.known[name] = Ingredient(name=name, run=run.id, score=score)
    found: Ingredient = known.known[name]
    return found


def checkpoint_named(state: State, name: str) -> Checkpoint:
    """The checkpoint of that name; retention keeps whatever an open merge names."""
    if name in state.bases:
        return state.bases[name]
    if name in state.soups:
        return state.soups[name]
    return checkpoint_event(state, name).checkpoint


def is_known_checkpoint(state: State, name: str) -> bool:
    """Whether the ledger knows a usable checkpoint of that run and step."""
    known = state.run(name.partition("/")[0]).checkpoints
    return any(event.checkpoint.name == name for event in known)


def checkpoint_event(state: State, name: str) -> Checkpointed:
    """The event that made a run's checkpoint count."""
    for event in state.run(name.partition("/")[0]).checkpoints:
        if event.checkpoint.name == name:
            return event
    raise KeyError(f"no checkpoint {name} in the ledger")


def checkpoints_named(state: State, names: Sequence[str]) -> tuple[Checkpoint, ...]:
    return tuple(checkpoint_named(state, name) for name in names)
