"""`rounds` of results.json: merges during training."""

from statistics import mean

from orchestrator.report.format import Json
from orchestrator.schedule.moment import Moment
from orchestrator.schedule.sync_rounds import merged_soup_name
from orchestrator.state.state import MergeState, State
from workers.types import SELECTION, Ingredient, Score


def merged_rounds(moment: Moment) -> list[Json]:
    """Observe rounds with their soups and sync rounds with their participants, oldest first."""
    merges = [merge for merge in moment.state.merges.values() if not merge.opened.is_final]
    rounds = [
        _synced(moment, merge) if merge.opened.is_sync else _observed(moment.state, merge)
        for merge in merges
        if merge.opened.is_sync or merge.soup is not None
    ]
    return sorted(rounds, key=lambda one: (one["time"] or 0.0, one["id"]))


def _observed(state: State, merge: MergeState) -> Json:
    assert merge.soup is not None
    return {
        **_head(merge),
        "score": merge.soup.score,
        "members": [_id_of(state, name) for name in merge.soup.mix.names],
    }


def _head(merge: MergeState) -> Json:
    opened = merge.opened
    return {
        "id": opened.merge,
        "mode": "observe" if opened.observe else "sync",
        "round": opened.round,
        "cohort": opened.cohort,
        "recipe": opened.recipe,
        "time": merge.mixed_at or opened.time,
    }


def _synced(moment: Moment, merge: MergeState) -> Json:
    """`merged`: scores of the merged weights, even if the members did not go on from them."""
    opened, closed, spread = merge.opened, merge.closed, merge.diversity
    merged = moment.state.scores.get(merged_soup_name(merge), {}).get(SELECTION)
    used = merge.soup.mix.names if merge.soup is not None else ()
    return {
        **_head(merge),
        "epoch": _epoch(moment, merge),
        "participants": [
            _member(moment.state, member, member.name in used) for member in opened.ingredients
        ],
        "left_out": [
            {"run": decision.candidate, "reason": decision.reason} for decision in opened.left_out
        ],
        "merged": _scores(merged),
        "went_on_from": closed.soup if closed is not None else None,
        "reason": closed.reason if closed is not None else "training ended before it was over",
        "diversity": {
            "cosine": spread.cosine if spread is not None else None,
            "disagreement": spread.disagreement if spread is not None else None,
        },
    }


def _member(state: State, member: Ingredient, is_used: bool) -> Json:
    point = state.run(member.run).curve.get(_step(member))
    scores = _scores(point.score if point is not None else None)
    return {"run": member.run, "step": _step(member), "merged": is_used, "scores": scores}


def _step(member: Ingredient) -> int:
    return int(member.name.partition("/")[2])


def _epoch(moment: Moment, merge: MergeState) -> float | None:
    """Mean epoch of the members."""
    if not moment.is_resolved:
        return None
    per_epoch = moment.resolved.steps_per_epoch
    return mean(_step(member) / per_epoch[member.run] for member in merge.opened.ingredients)


def _scores(score: Score | None) -> Json | None:
    return {"top1": score.top1, "nll": score.nll} if score is not None else None


def _id_of(state: State, name: str) -> str:
    """Id with the attempt; the name if the checkpoint is not known."""
    return state.checkpoint_named(name).id if state.is_known_checkpoint(name) else name
