"""results.json: the outcome of an experiment as one JSON value.

All ids are those of the store, so that a reader can find the files. Scores are fractions 0..1 and
nats; a number that is not finite is null.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator import config
from orchestrator.experiment.resolved import run_and_ema
from orchestrator.report.efficiency import fleet_efficiency, wall_s
from orchestrator.report.format import Json
from orchestrator.report.round_results import merged_rounds
from orchestrator.schedule.analysis import is_analysed
from orchestrator.schedule.final_merges import FinalMerge, written_soups
from orchestrator.schedule.moment import Moment
from orchestrator.schedule.path_scores import PathPoint, path_scores
from orchestrator.schedule.scoring import (
    best_single,
    comparison,
    ended_variants,
    predictions_of,
    scores_of,
    scores_of_soup,
)
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


def collect_results(moment: Moment) -> Json:
    """The content of results.json, also of an unfinished experiment."""
    compared = _comparison(moment)
    value = {
        "schema": RESULTS_SCHEMA,
        "name": moment.config.name,
        "uri": config.shown_uri(moment.config),
        "seed": moment.config.seed,
        "metric": moment.config.soup.metric,
        "selection": SELECTION,
        **_preflight(moment.state),
        "cohorts": _cohorts(moment),
        "runs": [
            _run(moment, run, variant)
            for run in moment.expanded.runs
            for variant in run_and_ema(run)
        ],
        "soups": [_soup(moment, compared, final, name) for final, name in written_soups(moment)],
        "ensembles": _ensembles(compared),
        "best_single": _best_single(moment),
        "served": moment.state.served.soup if moment.state.served is not None else None,
        "analysis": ANALYSIS if is_analysed(moment) else None,
        "rounds": merged_rounds(moment),
        "failures": _failures(moment.state),
        "finish_reason": moment.state.finish_reason,
        "wall_s": wall_s(moment.state),
        "fleet_efficiency": fleet_efficiency(moment.state).as_json(),
    }
    finite: Json = _finite(value)
    return finite


def _preflight(state: State) -> Json:
    facts = state.preflight
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


def _cohorts(moment: Moment) -> list[Json]:
    if not moment.is_resolved:
        return []
    resolved = moment.resolved
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


def _run(moment: Moment, run: RunSpec, variant: RunSpec) -> Json:
    """An entry for a run or its EMA (`variant`); both have the status of the run."""
    run_state, variant_state = moment.run(run.id), moment.run(variant.id)
    representative = moment.representative_of(variant)
    phase = moment.phase_of(run)
    steps = run_state.last.step if run_state.last is not None else 0
    resolved = moment.resolved if moment.is_resolved else None
    return {
        "id": variant.id,
        "role": variant.role,
        "cohort": resolved.cohort_of[run.id].id if resolved is not None else None,
        "params": variant.params,
        "seed": run.seed,
        "replica": run.replica,
        "fold": run.fold,
        "status": phase if phase in ("done", "failed") else "stopped",
        "failure": moment.failure_of(run) if resolved is not None else None,
        "attempts": _num_attempts(moment.state, run.id),
        "interruptions": run_state.interruptions,
        "steps": steps,
        "epochs": steps // resolved.steps_per_epoch[run.id] if resolved is not None else 0,
        "ended_early": run_state.ended_early,
        "checkpoints": [event.checkpoint.id for event in variant_state.checkpoints],
        "representative": representative.checkpoint.id if representative is not None else None,
        "scores": _scores_of_run(moment.state, representative),
    }


def _num_attempts(state: State, run: str) -> int:
    """Attempts, without the first one of each later segment between sync rounds."""
    num_segments = len(state.segments.get(run, ()))
    return state.attempts.get(run, 0) - max(0, num_segments - 1)


def _scores_of_run(state: State, event: Checkpointed | None) -> Json:
    return {} if event is None else _scores(scores_of(state, event.checkpoint.name))


def _scores(scores: Mapping[str, Score]) -> Json:
    return {
        split: {name: getattr(value, name) for name in SCORES} for split, value in scores.items()
    }


def _soup(moment: Moment, compared: Compared | None, final: FinalMerge, name: str) -> Json:
    merge = moment.state.merges[final.id]
    soup = merge.soup
    assert soup is not None, f"{name} was made without a mix"
    cost = _cost(moment.state, merge)
    deltas = compared.soups.get(predictions_of(moment.state, final, name)) if compared else None
    return {
        "id": name,
        "recipe": final.recipe.label,
        "options": dict(final.recipe.options),
        "cohort": cohort_family(final.cohort.id),
        "mix": _mix(moment.state, soup.mix),
        "ingredients": len(merge.opened.ingredients),
        "members": _ids_of(moment.state, soup.mix.names),
        "scores": _scores(scores_of_soup(moment.state, final, name)),
        "decisions": _decisions(moment.state, merge),
        "curve": [_point(moment.state, point) for point in path_scores(moment, final)],
        "tastes": len(_tasted(moment.state, merge)),
        "measured": merge.num_measurements,
        "samples_forwarded": cost.samples,
        "seconds": cost.seconds + moment.state.blend_seconds.get(name, 0.0),
        "batchnorm": final.cohort.batchnorm,
        "vs_best_single": _deltas(deltas or {}),
    }


def _point(state: State, point: PathPoint) -> Json:
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
        return state.checkpoint_named(name).id
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
    return name.partition("/")[0] if state.is_known_checkpoint(name) else None


def _deltas(deltas: Mapping[str, Delta]) -> Json:
    return {split: delta.model_dump(mode="json") for split, delta in deltas.items()}


def _comparison(moment: Moment) -> Compared | None:
    """The comparison of all current soups and runs. None: not made yet."""
    order = comparison(moment)
    return moment.state.compared.get(order.key) if order is not None else None


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


def _best_single(moment: Moment) -> Json | None:
    """The run that soups are compared with. None: no run has ended successfully."""
    if not moment.is_resolved:
        return None
    singles = list(ended_variants(moment))
    order = comparison(moment)
    if order is not None:
        singles = [single for single in singles if single[1].checkpoint.id == order.best_single]
    if not singles:
        return None
    run, event = best_single(moment, singles)
    scores = _scores(scores_of(moment.state, event.checkpoint.name))
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
