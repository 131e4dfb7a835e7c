"""results.json: the outcome of an experiment as one JSON value.

All ids are those of the store, so that a reader can find the files. Scores are fractions 0..1 and
nats; a number that is not finite is null.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator import config
from orchestrator.experiment.resolved import (
    ExpandedExperiment,
    ResolvedExperiment,
    resolve,
    run_and_ema,
)
from orchestrator.report.efficiency import fleet_efficiency, wall_s
from orchestrator.report.format import Json
from orchestrator.report.round_results import merged_rounds
from orchestrator.schedule import (
    analysis,
    final_merges,
    ingredients,
    path_scores,
    scoring,
    training,
)
from orchestrator.schedule.final_merges import Final
from orchestrator.state.remember import remembered
from orchestrator.state.state import MergeState, State
from workers.storage.layout import ANALYSIS
from workers.types import (
    SELECTION,
    Checkpointed,
    Compared,
    Delta,
    Mix,
    RunSpec,
    Score,
    cohort_family,
)

RESULTS_SCHEMA = 1
SCORES = ("top1", "macro_f1", "nll", "ece", "worst_class")


def collect_results(program: ExpandedExperiment, state: State) -> Json:
    """The content of results.json, also of an unfinished experiment."""
    resolved = resolve(program, state.facts) if state.facts is not None else None
    compared = _comparison(program, state)
    value = {
        "schema": RESULTS_SCHEMA,
        "name": program.experiment.name,
        "uri": config.uri(program.experiment),
        "seed": program.experiment.seed,
        "metric": program.experiment.soup.metric,
        "selection": SELECTION,
        **_facts(state),
        "cohorts": _cohorts(resolved),
        "runs": [
            _run(program, state, resolved, run, variant)
            for run in program.runs
            for variant in run_and_ema(run)
        ],
        "soups": [
            _soup(program, state, compared, final, name)
            for final, name in final_merges.written_soups(program, state)
        ],
        "ensembles": _ensembles(compared),
        "best_single": _best_single(program, state),
        "served": state.served.soup if state.served is not None else None,
        "analysis": ANALYSIS if analysis.is_made(program, state) else None,
        "rounds": merged_rounds(program, state),
        "failures": _failures(state),
        "finish_reason": state.finish_reason,
        "wall_s": wall_s(state),
        "fleet_efficiency": fleet_efficiency(state).as_json(),
    }
    finite: Json = _finite(value)
    return finite


def _facts(state: State) -> Json:
    facts = state.facts
    if facts is None:
        return {"splits": {}, "folds": [], "classes": [], "corrupt": [], "warnings": []}
    return {
        "splits": {
            name: {"count": split.count, "fingerprint": split.fingerprint}
            for name, split in facts.splits.items()
        },
        "folds": list(facts.folds),
        "classes": list(facts.classes),
        "corrupt": list(facts.corrupt),
        "warnings": list(facts.warnings),
    }


def _cohorts(resolved: ResolvedExperiment | None) -> list[Json]:
    if resolved is None:
        return []
    return [
        {
            "id": cohort.id,
            "name": resolved.cohort_names[cohort.id],
            "model": cohort.model.name,
            "base": cohort.base,
            "batchnorm": cohort.batchnorm,
            "runs": [run.id for run in resolved.members[cohort.id]],
        }
        for cohort in resolved.cohorts
    ]


@remembered(by=lambda state: (state.due_since,))
def _num_segments(state: State) -> Counter[str]:
    """Train orders by run: every segment between sync rounds is an order with attempts."""
    ordered = {order for order, _ in state.due_since if order.startswith("train-")}
    return Counter(order.removeprefix("train-").rpartition("-")[0] for order in ordered)


def _run(
    program: ExpandedExperiment,
    state: State,
    resolved: ResolvedExperiment | None,
    run: RunSpec,
    variant: RunSpec,
) -> Json:
    """An entry for a run or its EMA (`variant`); both have the status of the run."""
    run_state, variant_state = state.run(run.id), state.run(variant.id)
    representative = ingredients.representative_checkpoint(program, variant_state)
    status = training.status(program, state, run)
    steps = run_state.last.step if run_state.last is not None else 0
    return {
        "id": variant.id,
        "role": variant.role,
        "cohort": resolved.cohort_of[run.id].id if resolved is not None else None,
        "params": variant.params,
        "seed": run.seed,
        "replica": run.replica,
        "fold": run.fold,
        "status": status if status in ("done", "failed", "pruned") else "stopped",
        "failure": training.failure(state, resolved, run) if resolved is not None else None,
        "attempts": state.attempts.get(run.id, 0) - max(0, _num_segments(state)[run.id] - 1),
        "interruptions": run_state.interruptions,
        "steps": steps,
        "epochs": steps // resolved.steps_per_epoch[run.id] if resolved is not None else 0,
        "ended_early": run_state.ended_early,
        "checkpoints": [event.checkpoint.id for event in variant_state.checkpoints],
        "representative": representative.checkpoint.id if representative is not None else None,
        "scores": _scores_of_run(state, representative),
    }


def _scores_of_run(state: State, event: Checkpointed | None) -> Json:
    return {} if event is None else _scores(scoring.scores_of(state, event.checkpoint.name))


def _scores(scores: Mapping[str, Score]) -> Json:
    return {
        split: {name: getattr(value, name) for name in SCORES} for split, value in scores.items()
    }


def _soup(
    program: ExpandedExperiment, state: State, compared: Compared | None, final: Final, name: str
) -> Json:
    merge = state.merges[final.id]
    soup = merge.soup
    assert soup is not None, f"{name} was made without a mix"
    cost = _cost(state, merge)
    deltas = compared.soups.get(scoring.predictions_of(state, final, name)) if compared else None
    return {
        "id": name,
        "recipe": final.recipe.label,
        "options": dict(final.recipe.options),
        "cohort": cohort_family(final.cohort.id),
        "mix": _mix(state, soup.mix),
        "ingredients": len(merge.opened.ingredients),
        "members": _ids_of(state, soup.mix.names),
        "scores": _scores(scoring.scores_of_soup(state, final, name)),
        "decisions": _decisions(state, merge),
        "curve": [_point(state, point) for point in path_scores.curve(program, state, final)],
        "tastes": len(_tasted(state, merge)),
        "measured": merge.num_measurements,
        "samples_forwarded": cost.samples,
        "seconds": cost.seconds + state.blend_seconds.get(name, 0.0),
        "batchnorm": final.cohort.batchnorm,
        "vs_best_single": _deltas(deltas or {}),
    }


def _point(state: State, point: path_scores.Point) -> Json:
    """A point of the recipe's path, scored on the report splits."""
    scores = _scores(point.scores)
    return {"alpha": point.alpha, "mix": _mix(state, point.mix), "scores": scores}


def _mix(state: State, mix: Mix) -> Json:
    """`components` is left out where the mix has none."""
    components = [{"prefix": c.prefix, "weights": list(c.weights)} for c in mix.components]
    return {
        "divisor": mix.divisor,
        "weights": [[_id_of(state, member), weight] for member, weight in mix.weights],
        **({"components": components} if components else {}),
    }


def _tasted(state: State, merge: MergeState) -> tuple[tuple[str, str], ...]:
    """(cohort, mix key) of the mixes tasted for the merge, without repetitions. A taste shared with
    another merge counts for both: the number says what the recipe needs."""
    keys = dict.fromkeys((merge.opened.cohort, mix) for mix in merge.tasted_mixes)
    return tuple(key for key in keys if key in state.tastes)


@dataclass(frozen=True)
class _Cost:
    """Cost of the answers to a merge's questions."""

    samples: int
    seconds: float


def _cost(state: State, merge: MergeState) -> _Cost:
    """Cost of tastes, inner products and gradients."""
    tasted = _tasted(state, merge)
    return _Cost(
        sum(state.tastes[key].samples for key in tasted) + merge.measured_samples,
        sum(state.taste_cost.get(key, 0.0) for key in tasted) + merge.measured_s,
    )


def _id_of(state: State, name: str) -> str:
    """Id of a named checkpoint; its name if the checkpoint was deleted."""
    try:
        return ingredients.checkpoint_named(state, name).id
    except KeyError:
        return name


def _ids_of(state: State, names: Iterable[str]) -> list[str]:
    return [_id_of(state, name) for name in names]


def _decisions(state: State, merge: MergeState) -> list[Json]:
    """Decisions about the candidates, in the recipe's order."""
    run_of = {ingredient.name: ingredient.run for ingredient in merge.opened.ingredients}
    decisions = merge.soup.decisions if merge.soup is not None else ()
    return [
        {
            **decision.model_dump(),
            "candidate": _id_of(state, decision.candidate),
            "run": run_of.get(decision.candidate) or _run_of(state, decision.candidate),
        }
        for decision in decisions
    ]


def _run_of(state: State, name: str) -> str | None:
    """Run of a checkpoint that is no ingredient. None: no checkpoint, such as `alpha 0.3`."""
    return name.partition("/")[0] if ingredients.is_known_checkpoint(state, name) else None


def _deltas(deltas: Mapping[str, Delta]) -> Json:
    return {split: delta.model_dump(mode="json") for split, delta in deltas.items()}


def _comparison(program: ExpandedExperiment, state: State) -> Compared | None:
    """The comparison of all current soups and runs. None: not made yet."""
    order = scoring.compare_order(program, state)
    return state.compared.get(order.key) if order is not None else None


def _ensembles(compared: Compared | None) -> list[Json]:
    return [
        {
            "id": ensemble.id,
            "kind": ensemble.kind,
            "members": list(ensemble.members),
            "groups": [list(group) for group in ensemble.groups],
            "fitted_on": ensemble.fitted_on,
            "scores": _scores(ensemble.scores),
            "vs_best_single": _deltas(ensemble.vs_best_single),
        }
        for ensemble in (compared.ensembles if compared is not None else ())
    ]


def _best_single(program: ExpandedExperiment, state: State) -> Json | None:
    """The run that soups are compared with. None: no run has ended successfully."""
    if state.facts is None:
        return None
    resolved = resolve(program, state.facts)
    singles = list(scoring.ended_variants(program, state, resolved))
    order = scoring.compare_order(program, state)
    if order is not None:
        singles = [single for single in singles if single[1].checkpoint.id == order.best_single]
    if not singles:
        return None
    run, event = scoring.best_single(program, singles)
    scores = _scores(scoring.scores_of(state, event.checkpoint.name))
    return {"run": run.id, "checkpoint": event.checkpoint.id, "scores": scores}


def _failures(state: State) -> list[Json]:
    """All orders that failed or were given up, also those that a later attempt completed."""
    orders = dict.fromkeys([*state.failures, *state.gave_up])
    return [_failure(state, order) for order in orders]


def _failure(state: State, order: str) -> Json:
    failed = state.failures.get(order, ())
    return {
        "order": order,
        "run": next((event.run for event in failed if event.run), None),
        "times": len(failed),
        "error": failed[-1].error if failed else None,
        "message": failed[-1].message if failed else None,
        "gave_up": state.gave_up.get(order),
    }


def _finite(value: Any) -> Any:
    """The same value with null for every number that is not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
