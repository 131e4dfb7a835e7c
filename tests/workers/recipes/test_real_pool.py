"""Recipes that learn, on checkpoints in a store, answered by real orders."""

from pathlib import Path

import pytest

from tests.workers.small_soups import RESNET, VIT, Pool, make_pool
from workers.config.model import ModelConfig
from workers.merging.gradient import measure_gradient
from workers.merging.gram import measure_gram_matrices
from workers.merging.recipe_driver import advance
from workers.merging.taste import taste
from workers.recipes import load_recipe
from workers.types import (
    Answer,
    GeometryOrder,
    GradientOrder,
    GramMatrices,
    Ingredient,
    Measured,
    Mix,
    MixGradient,
    Question,
    RecipeContext,
    Soup,
    Taste,
    Tasted,
    TasteOrder,
    TasteResult,
    TasteResults,
)

COMPONENTS = {
    VIT.name: ("patch_embed", "blocks", "head"),
    RESNET.name: ("conv1", "layer1", "layer2", "layer3", "layer4", "fc"),
}


def context_of(pool: Pool) -> RecipeContext:
    components = COMPONENTS[pool.cohort.model.name]
    return RecipeContext(base=pool.cohort.base, components=components, num_selection=150)


def tasted(pool: Pool, mix: Mix) -> TasteResult:
    order = TasteOrder(cohort=pool.cohort, mix=mix, ingredients=pool.members)
    (event,) = taste(order, 0, pool.worker)
    assert isinstance(event, Tasted)
    return event.tasting


def answer(pool: Pool, question: Question) -> Answer:
    everyone = (*pool.members, pool.base)
    if isinstance(question, Taste):
        found = [tasted(pool, mix) for mix in question.mixes]
        scores = tuple(each.at_most for each in found)
        return TasteResults(scores=scores, nll=tuple(each.nll for each in found))
    cohort, worker = pool.cohort, pool.worker
    if isinstance(question, GramMatrices):
        order = GeometryOrder(cohort=cohort, question=question, ingredients=everyone)
        (event,) = measure_gram_matrices(order, 0, worker)
    else:
        assert isinstance(question, MixGradient)
        ask = GradientOrder(cohort=cohort, question=question, ingredients=everyone)
        (event,) = measure_gradient(ask, 0, worker)
    assert isinstance(event, Measured)
    return event.answer


@pytest.mark.parametrize(
    "model", [VIT, pytest.param(RESNET, marks=pytest.mark.slow)], ids=lambda spec: str(spec.name)
)
def test_descents_end_no_worse_than_the_mean_and_where_a_replay_ends(
    tmp_path: Path, model: ModelConfig
) -> None:
    pool = make_pool(tmp_path, model)
    ingredients = tuple(
        Ingredient(name=name, run=name.split("/")[0], score=score)
        for name, score in zip(pool.names, pool.scores, strict=True)
    )
    start = tasted(pool, Mix.mean([each.name for each in ingredients]))
    assert start.nll is not None and start.score is not None
    for name, options in (
        ("learned", {"epochs": 2, "batch_size": 64}),
        ("learned", {"by": "component", "epochs": 2, "batch_size": 64}),
        ("mehl", {"epochs": 2, "batch_size": 64}),
    ):
        answers: list[Answer] = []
        while not isinstance(
            outcome := advance(
                load_recipe(name, options), ingredients, tuple(answers), context_of(pool)
            ),
            Soup,
        ):
            answers.append(answer(pool, outcome))
        soup = tasted(pool, outcome.mix)
        assert soup.score is not None and soup.nll is not None
        assert outcome.score == soup.score >= start.score
        assert soup.nll <= start.nll + 1e-6, "the mean may be written another way"
        assert len(answers) > 3
