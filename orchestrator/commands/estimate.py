"""Estimates of a plan: bytes at the peak, seconds to the end. Pure.

bases -> runs, each on the first free slot -> tastes -> scores
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
"""Start of Ray and of the first worker, measured on two cores."""

PLACEHOLDER_INGREDIENT = (Ingredient(name="run/00000001", run="run", score=0.0),)
"""Any ingredient; the number of points on a recipe's path does not depend on it."""

Paces = Mapping[str, RunTiming]
"""Timing by `kind` of run."""

TIMING_KEYS = (
    *("batch_size", "grad_accum_steps", "opt", "aa", "amp_dtype", "tf32", "channels_last"),
    *("grad_checkpointing", "compile", "bn_freeze", "unfreeze"),
)
"""Keys of train whose values affect the time of a step."""
ON_OR_OFF = (
    *("color_jitter", "grayscale", "affine", "perspective", "reprob", "mixup", "cutmix"),
    *("drop_path", "model_ema_decay"),
)
"""Keys of train that cost the same with any value, once they are set."""


def kind(run: RunSpec) -> str:
    """Digest of all that affects the time of a step: equal for runs that are equally fast."""
    train = dump_without_defaults(run.train)
    values = [train.get(key) for key in TIMING_KEYS]
    return digest(
        [dump_without_defaults(run.model), values, [bool(train.get(key)) for key in ON_OR_OFF]]
    )


# Storage


def peak_bytes(expanded: ExpandedExperiment, resolved: ResolvedExperiment, slots: int) -> int:
    """Bytes in the store when the last runs end: checkpoints that retention keeps, soups and
    predictions, and two checkpoints per slot: one being written, one for an anytime soup."""
    facts = resolved.preflight
    runs = sum(
        kept_checkpoints(expanded, resolved, variant) * _checkpoint_bytes(facts, variant)
        for variant in expanded.variants
    )
    largest = max(model.checkpoint_bytes for model in facts.models.values())
    bases = sum(_base_bytes(plan, facts) for plan in resolved.plans)
    models = [facts.models[model_key(cohort.model)] for cohort in resolved.cohorts]
    soups = sum(len(expanded.recipes) * model.model_bytes for model in models)
    soups += 2 * sum(_group_bytes(facts, group) for group in _merging(expanded, resolved))
    served = max(model.model_bytes for model in models)
    return runs + 2 * slots * largest + bases + soups + served + _prediction_bytes(expanded, facts)


def _merging(
    expanded: ExpandedExperiment, resolved: ResolvedExperiment
) -> Iterable[sync_rounds.SyncGroup]:
    return sync_rounds.sync_groups(resolved) if expanded.is_sync else ()


def _group_bytes(facts: PreflightResult, group: sync_rounds.SyncGroup) -> int:
    """Bytes of merged weights; those of a round are deleted once the next one has closed."""
    return facts.models[model_key(group.cohort.model)].model_bytes


def _checkpoint_bytes(facts: PreflightResult, variant: RunSpec) -> int:
    """Bytes of a checkpoint; that of a moving average has weights only."""
    model = facts.models[_key(variant)]
    return model.model_bytes if variant.role == "ema" else model.checkpoint_bytes


def kept_checkpoints(
    expanded: ExpandedExperiment, resolved: ResolvedExperiment, variant: RunSpec
) -> int:
    """Most checkpoints of a run that has ended: those that soup.ingredients may choose, the last
    scored one and the last one."""
    written, scored = _steps(expanded, resolved, variant)
    return min(len(written), _num_chosen(expanded, resolved, variant, scored) + 1)


def num_ingredients(
    expanded: ExpandedExperiment, resolved: ResolvedExperiment, variant: RunSpec
) -> int:
    """Most checkpoints of a run that recipes use; fewer if patience ends it early."""
    _, scored = _steps(expanded, resolved, variant)
    chosen = _num_chosen(expanded, resolved, variant, scored)
    return max(1, min(len(scored), chosen))


def _steps(
    expanded: ExpandedExperiment, resolved: ResolvedExperiment, variant: RunSpec
) -> tuple[set[int], set[int]]:
    """Steps with a checkpoint, and those of them that are scored."""
    run = resolved.run_of[variant.id]
    steps, per_epoch = resolved.num_steps[run.id], resolved.steps_per_epoch[run.id]
    every = variant.train.checkpoint_steps(per_epoch)
    stops: set[int] = set()
    if expanded.is_sync:
        period = sync_rounds.period(resolved, run)
        stops.update(range(period, steps, period))
    written = {*range(every, steps + 1, every), steps, *stops}
    return written, {step for step in written if step % per_epoch == 0} | stops


def _num_chosen(
    expanded: ExpandedExperiment, resolved: ResolvedExperiment, variant: RunSpec, scored: set[int]
) -> int:
    ingredients = expanded.experiment.soup.ingredients
    if not isinstance(ingredients, str):
        per_epoch = resolved.steps_per_epoch[run_id_of(variant.id)]
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


def _prediction_bytes(expanded: ExpandedExperiment, facts: PreflightResult) -> int:
    """Bytes of float32 logits and a key per scored image, for all runs, averages and soups."""
    scored = sum(split.count for name, split in facts.splits.items() if name != "train")
    held_out = max(facts.folds, default=0)
    per_image = 4 * len(facts.classes) + 32
    soups = len(expanded.recipes) * scored
    return (len(expanded.variants) * (scored + held_out) + soups) * per_image


def num_rounds(expanded: ExpandedExperiment, resolved: ResolvedExperiment) -> int:
    """Sync rounds of all groups, if no run fails or ends early."""
    if not expanded.is_sync:
        return 0
    return sum(
        max(
            (resolved.num_steps[run.id] - 1) // sync_rounds.period(resolved, run)
            for run in resolved.members[group.cohort.id]
            if run.fold == group.fold
        )
        for group in sync_rounds.sync_groups(resolved)
    )


# Time


def seconds(
    expanded: ExpandedExperiment, resolved: ResolvedExperiment, slots: int, paces: Paces
) -> float:
    """Seconds of wall-clock time on `slots` slots without failures.

    Every run is assumed to train all its epochs, so with train.patience this is an upper bound.
    """
    chains = (sum(_train_s(r, resolved, paces) for r in plan.stages) for plan in resolved.plans)
    runs = (_train_s(run, resolved, paces) for run in expanded.runs)
    soups = _soups_s(expanded, resolved, paces) / slots
    return STARTUP_S + makespan(chains, slots) + makespan(runs, slots) + soups


def makespan(durations: Iterable[float], slots: int) -> float:
    """Time until the last one ends if each of them, in order, takes the first free slot."""
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


def _soups_s(expanded: ExpandedExperiment, resolved: ResolvedExperiment, paces: Paces) -> float:
    """Seconds on one slot: final tastes, and report splits of runs, soups and points of paths."""
    facts = resolved.preflight
    reported = sum(facts.splits[name].count for name in resolved.report_splits)
    total = 0.0
    for cohort in resolved.cohorts:
        variants = resolved.variants[cohort.id]
        ingredients = sum(num_ingredients(expanded, resolved, variant) for variant in variants)
        recipes = [load_recipe(recipe.name, dict(recipe.options)) for recipe in expanded.recipes]
        tastes = sum(most_tastes(recipe, ingredients) for recipe in recipes)
        num_points = sum(
            len(path_of(recipe, PLACEHOLDER_INGREDIENT, RecipeContext(base="base")))
            for recipe in recipes
        )
        images = tastes * facts.splits["val"].count
        images += (len(variants) + len(recipes) + num_points) * reported
        if cohort.batchnorm == "recompute":
            recomputed = min(
                expanded.experiment.soup.batchnorm_samples, facts.splits["train"].count
            )
            images += (tastes + num_points) * recomputed
        total += images * paces[kind(variants[0])].score_image_s
    return total
