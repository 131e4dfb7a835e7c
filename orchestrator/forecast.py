"""Forecast: bytes at the peak and seconds to the end, from facts and a rehearsal's pace. Pure.

bases -> runs on slots, first free slot first -> tastes -> scores
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from orchestrator.program import BasePlan, Program, Recipe, Resolved
from workers.types import Facts, ModelFacts, RunSpec, digest, model_key

STARTUP_S = 15.0
"""Until Ray and the first warm process are up; measured on two cores."""

Paces = Mapping[str, "Pace"]
"""By `kind` of run."""


@dataclass(frozen=True)
class Pace:
    step_s: float
    score_image_s: float


def kind(run: RunSpec) -> str:
    """Runs of one kind take equally long per step."""
    train = run.train
    return digest(
        [
            run.model.model_dump(),
            train.batch_size,
            train.grad_accum_steps,
            train.amp_dtype,
            train.opt,
            train.aa,
            train.drop_path > 0,
        ]
    )


# Storage


def peak_bytes(program: Program, resolved: Resolved, slots: int) -> int:
    """When the last runs end: what retention keeps, soups, predictions, and per slot one checkpoint
    being written and one that an anytime soup still needs."""
    facts = resolved.facts
    runs = sum(
        kept_checkpoints(program, resolved, run) * facts.models[_key(run)].checkpoint_bytes
        for run in program.runs
    )
    largest = max(model.checkpoint_bytes for model in facts.models.values())
    bases = sum(_base_bytes(plan, facts) for plan in resolved.plans)
    models = [facts.models[model_key(cohort.model)] for cohort in resolved.cohorts]
    soups = sum(len(program.recipes) * model.model_bytes for model in models)
    served = max(model.model_bytes for model in models)
    return runs + 2 * slots * largest + bases + soups + served + _prediction_bytes(program, facts)


def kept_checkpoints(program: Program, resolved: Resolved, run: RunSpec) -> int:
    """At most so many lie in the store once the run has ended: what soup.ingredients may choose,
    the last scored one and the last."""
    steps = resolved.num_steps[run.id]
    per_epoch = steps // run.train.epochs
    every = run.train.checkpoint_steps(per_epoch)
    written = {*range(every, steps + 1, every), steps}
    scored = {step for step in written if step % per_epoch == 0}
    ingredients = program.experiment.soup.ingredients
    choosable = {"best": 1, "last": 0, "all": len(scored)}
    count = choosable.get(ingredients)
    if count is None:
        count = int(ingredients.removeprefix("top-"))
    return min(len(written), count + 1)


def _key(run: RunSpec) -> str:
    return model_key(run.model)


def _base_bytes(plan: BasePlan, facts: Facts) -> int:
    model: ModelFacts = facts.models[model_key(plan.model)]
    final = model.model_bytes if plan.stages else 0
    return model.model_bytes + final + len(plan.stages) * model.checkpoint_bytes


def _prediction_bytes(program: Program, facts: Facts) -> int:
    """float32 logits and a key of every scored image, for every run and soup."""
    scored = sum(split.count for name, split in facts.splits.items() if name != "train")
    per_image = 4 * len(facts.classes) + 32
    return (len(program.runs) + len(program.recipes)) * scored * per_image


# Time


def seconds(program: Program, resolved: Resolved, slots: int, paces: Paces) -> float:
    """Wall-clock seconds on `slots` slots, none of them ever lost."""
    chains = (sum(_train_s(r, resolved, paces) for r in plan.stages) for plan in resolved.plans)
    runs = (_train_s(run, resolved, paces) for run in program.runs)
    souping = _souping_s(program, resolved, paces) / slots
    return STARTUP_S + makespan(chains, slots) + makespan(runs, slots) + souping


def makespan(durations: Iterable[float], slots: int) -> float:
    """When the last one ends if each, in order, takes the first free slot."""
    ends = [0.0] * slots
    for duration in durations:
        heapq.heappush(ends, heapq.heappop(ends) + duration)
    return max(ends)


def _train_s(run: RunSpec, resolved: Resolved, paces: Paces) -> float:
    pace = paces[kind(run)]
    scored = run.train.epochs * resolved.facts.splits["val"].count
    return resolved.num_steps[run.id] * pace.step_s + scored * pace.score_image_s


def _souping_s(program: Program, resolved: Resolved, paces: Paces) -> float:
    """Of one slot: final tastes, and the report splits for every run and soup."""
    facts = resolved.facts
    reported = sum(facts.splits[name].count for name in resolved.report_splits)
    total = 0.0
    for cohort in resolved.cohorts:
        members = resolved.members[cohort.id]
        image_s = paces[kind(members[0])].score_image_s
        recomputed = program.experiment.soup.batchnorm_samples
        per_taste = facts.splits["val"].count + (
            min(recomputed, facts.splits["train"].count) if cohort.batchnorm == "recompute" else 0
        )
        tastes = sum(_tastes(program.recipes, len(members)))
        total += (tastes * per_taste + (len(members) + len(program.recipes)) * reported) * image_s
    return total


def _tastes(recipes: tuple[Recipe, ...], num_members: int) -> Iterator[int]:
    """At most: greedy tastes every candidate; what a recipe of another kind asks is unknown."""
    for recipe in recipes:
        yield {"best": 0, "uniform": 1}.get(recipe.name, num_members)
