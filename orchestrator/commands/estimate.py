"""Forecast: bytes at the peak and seconds to the end, from facts and a rehearsal's pace. Pure.

bases -> runs on slots, first free slot first -> tastes -> scores
"""

import heapq
from collections.abc import Iterable, Mapping

from orchestrator.experiment.resolved import (
    BasePlan,
    ExpandedExperiment,
    ResolvedExperiment,
    run_and_ema,
)
from orchestrator.schedule import sync_rounds
from workers.recipes import load_recipe, most_tastes, path_of
from workers.types import (
    Ingredient,
    ModelInfo,
    PreflightResult,
    RecipeContext,
    RunSpec,
    RunTiming,
    digest,
    dump_without_defaults,
    model_key,
    run_id_of,
)

STARTUP_S = 15.0
"""Until Ray and the first warm process are up; measured on two cores."""

PLACEHOLDER_INGREDIENT = (Ingredient(name="run/00000001", run="run", score=0.0),)
"""To ask a recipe how many points its way has."""

Paces = Mapping[str, RunTiming]
"""By `kind` of run."""

TIMING_KEYS = (
    *("batch_size", "grad_accum_steps", "opt", "aa", "amp_dtype", "tf32", "channels_last"),
    *("grad_checkpointing", "compile", "bn_freeze", "unfreeze"),
)
"""Keys of train whose values a step's time depends on."""
ON_OR_OFF = (
    *("color_jitter", "grayscale", "affine", "perspective", "reprob", "mixup", "cutmix"),
    *("drop_path", "model_ema_decay"),
)
"""Keys that cost the same whatever they are set to, once they are set."""


def kind(run: RunSpec) -> str:
    """Runs of one kind take equally long per step."""
    told = dump_without_defaults(run.train)
    values = [told.get(key) for key in TIMING_KEYS]
    return digest(
        [dump_without_defaults(run.model), values, [bool(told.get(key)) for key in ON_OR_OFF]]
    )


# Storage


def peak_bytes(program: ExpandedExperiment, resolved: ResolvedExperiment, slots: int) -> int:
    """When the last runs end: what retention keeps, soups, predictions, and per slot one checkpoint
    being written and one that an anytime soup still needs."""
    facts = resolved.preflight
    runs = sum(
        kept_checkpoints(program, resolved, track) * _checkpoint_bytes(facts, track)
        for track in program.variants
    )
    largest = max(model.checkpoint_bytes for model in facts.models.values())
    bases = sum(_base_bytes(plan, facts) for plan in resolved.plans)
    models = [facts.models[model_key(cohort.model)] for cohort in resolved.cohorts]
    soups = sum(len(program.recipes) * model.model_bytes for model in models)
    soups += 2 * sum(_circle_bytes(facts, circle) for circle in _merging(program, resolved))
    served = max(model.model_bytes for model in models)
    return runs + 2 * slots * largest + bases + soups + served + _prediction_bytes(program, facts)


def _merging(
    program: ExpandedExperiment, resolved: ResolvedExperiment
) -> Iterable[sync_rounds.SyncGroup]:
    return sync_rounds.sync_groups(resolved) if program.is_sync else ()


def _circle_bytes(facts: PreflightResult, circle: sync_rounds.SyncGroup) -> int:
    """Of a round's merged weights; those of the one before go when the next has closed."""
    return facts.models[model_key(circle.cohort.model)].model_bytes


def _checkpoint_bytes(facts: PreflightResult, track: RunSpec) -> int:
    """A moving average is weights alone."""
    model = facts.models[_key(track)]
    return model.model_bytes if track.role == "ema" else model.checkpoint_bytes


def kept_checkpoints(
    program: ExpandedExperiment, resolved: ResolvedExperiment, track: RunSpec
) -> int:
    """At most so many lie in the store once the run has ended: what soup.ingredients may choose,
    the last scored one and the last."""
    written, scored = _steps(program, resolved, track)
    return min(len(written), _num_chosen(program, resolved, track, scored) + 1)


def num_ingredients(
    program: ExpandedExperiment, resolved: ResolvedExperiment, track: RunSpec
) -> int:
    """At most so many of them the recipes see; patience can end a run before."""
    _, scored = _steps(program, resolved, track)
    chosen = _num_chosen(program, resolved, track, scored)
    return max(1, min(len(scored), chosen))


def _steps(
    program: ExpandedExperiment, resolved: ResolvedExperiment, track: RunSpec
) -> tuple[set[int], set[int]]:
    """(steps with a checkpoint, those of them that are scored)"""
    run = resolved.run_of[track.id]
    steps, per_epoch = resolved.num_steps[run.id], resolved.steps_per_epoch[run.id]
    every = track.train.checkpoint_steps(per_epoch)
    stops: set[int] = set()
    if program.is_sync:
        period = sync_rounds.period(resolved, run)
        stops.update(range(period, steps, period))
    written = {*range(every, steps + 1, every), steps, *stops}
    return written, {step for step in written if step % per_epoch == 0} | stops


def _num_chosen(
    program: ExpandedExperiment, resolved: ResolvedExperiment, track: RunSpec, scored: set[int]
) -> int:
    ingredients = program.experiment.soup.ingredients
    if not isinstance(ingredients, str):
        per_epoch = resolved.steps_per_epoch[run_id_of(track.id)]
        return len(scored & {epoch * per_epoch for epoch in ingredients}) + 1
    choosable = {"best": 1, "last": 0, "all": len(scored)}
    count = choosable.get(ingredients)
    return int(ingredients.removeprefix("top-")) if count is None else count


def _key(run: RunSpec) -> str:
    return model_key(run.model)


def _base_bytes(plan: BasePlan, facts: PreflightResult) -> int:
    model: ModelInfo = facts.models[model_key(plan.model)]
    final = model.model_bytes if plan.stages else 0
    return model.model_bytes + final + len(plan.stages) * model.checkpoint_bytes


def _prediction_bytes(program: ExpandedExperiment, facts: PreflightResult) -> int:
    """float32 logits and a key of every scored image, for every run, average and soup."""
    scored = sum(split.count for name, split in facts.splits.items() if name != "train")
    held_out = max(facts.folds, default=0)
    per_image = 4 * len(facts.classes) + 32
    soups = len(program.recipes) * scored
    return (len(program.variants) * (scored + held_out) + soups) * per_image


def num_rounds(program: ExpandedExperiment, resolved: ResolvedExperiment) -> int:
    """Sync rounds of all circles, if nobody fails or ends early."""
    if not program.is_sync:
        return 0
    return sum(
        max(
            (resolved.num_steps[run.id] - 1) // sync_rounds.period(resolved, run)
            for run in resolved.members[circle.cohort.id]
            if run.fold == circle.fold
        )
        for circle in sync_rounds.sync_groups(resolved)
    )


# Time


def seconds(
    program: ExpandedExperiment, resolved: ResolvedExperiment, slots: int, paces: Paces
) -> float:
    """Wall-clock seconds on `slots` slots, none of them ever lost. With train.patience at most so
    many: every run is taken to need all its epochs."""
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


def _train_s(run: RunSpec, resolved: ResolvedExperiment, paces: Paces) -> float:
    pace = paces[kind(run)]
    held_out = 0 if run.fold is None else resolved.preflight.folds[run.fold]
    per_epoch = (resolved.preflight.splits["val"].count + held_out) * len(run_and_ema(run))
    scored = run.train.epochs * per_epoch
    return resolved.num_steps[run.id] * pace.step_s + scored * pace.score_image_s


def _souping_s(program: ExpandedExperiment, resolved: ResolvedExperiment, paces: Paces) -> float:
    """Of one slot: final tastes, and the report splits for every run, soup and point of a curve."""
    facts = resolved.preflight
    reported = sum(facts.splits[name].count for name in resolved.report_splits)
    total = 0.0
    for cohort in resolved.cohorts:
        tracks = resolved.variants[cohort.id]
        ingredients = sum(num_ingredients(program, resolved, track) for track in tracks)
        made = [load_recipe(recipe.name, dict(recipe.options)) for recipe in program.recipes]
        tastes = sum(most_tastes(recipe, ingredients) for recipe in made)
        passed = sum(
            len(path_of(recipe, PLACEHOLDER_INGREDIENT, RecipeContext(base="base")))
            for recipe in made
        )
        images = tastes * facts.splits["val"].count
        images += (len(tracks) + len(made) + passed) * reported
        if cohort.batchnorm == "recompute":
            settled = min(program.experiment.soup.batchnorm_samples, facts.splits["train"].count)
            images += (tastes + passed) * settled
        total += images * paces[kind(tracks[0])].score_image_s
    return total
