"""Manifold mixing against the published loop, which interpolates models instead of weights."""

import random

import numpy as np
import pytest
from cmaes import CMA
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.merging.recipe_driver import advance
from workers.recipes.manifold import Manifold, grouped
from workers.types import (
    Answer,
    FirstAtLeast,
    FirstResult,
    Ingredient,
    Mix,
    Question,
    RecipeContext,
    Soup,
    Taste,
    TasteResult,
    TasteResults,
)

COMPONENTS = ("stem", "block1", "block2", "head")
Model = dict[str, np.ndarray]


class VectorModels:
    """Models of one vector per component; the score is highest at a point near their mean."""

    def __init__(self, seed: int, num: int, sign: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self.sign = sign
        self.models = {
            f"run{i}/00000001": {key: rng.normal(size=3) for key in ("cls", *COMPONENTS)}
            for i in range(num)
        }
        self.goal = {key: rng.normal(size=3) / 3 for key in ("cls", *COMPONENTS)}
        self.context = RecipeContext(
            base="base/0", components=COMPONENTS, seed=seed, num_selection=50
        )
        self.asked: list[Question] = []
        self.pool = tuple(
            Ingredient(name=name, run=name.split("/")[0], score=self.judged(model))
            for name, model in self.models.items()
        )

    def judged(self, model: Model) -> float:
        far = sum(float(((model[key] - self.goal[key]) ** 2).sum()) for key in self.goal)
        # In steps of 1/50, so that ties occur; negative as a log-likelihood would be.
        return round(50 * (10 / (10 + far))) / 50 - (self.sign < 0)

    def score(self, mix: Mix) -> float:
        own = {each.prefix: each.weights for each in mix.components}
        shared = tuple(weight for _, weight in mix.weights)
        return self.judged(
            {
                key: sum(
                    w * self.models[name][key]
                    for (name, _), w in zip(mix.weights, own.get(key, shared), strict=True)
                )
                / mix.divisor
                for key in self.goal
            }
        )

    def answer(self, question: Question, stops_early: bool) -> Answer:
        self.asked.append(question)
        if isinstance(question, Taste):
            return TasteResults(scores=tuple(self.score(mix) for mix in question.mixes))
        assert isinstance(question, FirstAtLeast)
        tried = []
        for index, mix in enumerate(question.mixes):
            score = self.score(mix)
            if question.is_met_by(score):
                tried.append(TasteResult(score=score, at_most=score, samples=50))
                return FirstResult(index=index, tried=tuple(tried))
            bound = random.Random(mix.key).uniform(score, question.at_least)
            seen = None if stops_early else score
            tried.append(
                TasteResult(score=seen, at_most=bound if stops_early else score, samples=9)
            )
        return FirstResult(index=None, tried=tuple(tried))

    def run_recipe(self, recipe: Manifold, stops_early: bool = False) -> tuple[Soup, list[Answer]]:
        answers: list[Answer] = []
        while True:
            outcome = advance(recipe, self.pool, tuple(answers), self.context)
            if isinstance(outcome, Soup):
                return outcome, answers
            answers.append(self.answer(outcome, stops_early))


def textbook(vectors: VectorModels, recipe: Manifold) -> tuple[list[str], Model, float]:
    """lambda * A + (1 - lambda) * C, one candidate after the other, A a model."""
    order = sorted(vectors.pool, key=lambda each: (-each.score, each.run))
    members, soup, score = [order[0].name], vectors.models[order[0].name], order[0].score
    groups = [("cls",), *grouped(COMPONENTS, recipe.max_components)]

    def mixed(name: str, shares: list[float]) -> Model:
        return {
            key: share * soup[key] + (1 - share) * vectors.models[name][key]
            for group, share in zip(groups, shares, strict=True)
            for key in group
        }

    num_refused = 0
    for candidate in order[1:]:
        if num_refused == recipe.patience:
            break
        num_refused += 1
        even = len(members) / (len(members) + 1)
        best = mixed(candidate.name, [even] * len(groups))
        best_score = vectors.judged(best)
        if best_score < score - (1 - recipe.tau) * abs(score):
            continue
        num, half = len(groups) - 1, 0.5 * (1 - even)
        words = [vectors.context.seed, *candidate.name.encode()]
        seed = int(np.random.SeedSequence(words).generate_state(1)[0])
        search = CMA(
            mean=np.full(num, even),
            sigma=half / 2,
            bounds=np.array([[even - half, even + half]] * num),
            seed=seed,
        )
        for _ in range(recipe.budget * num // search.population_size):
            told = []
            for _ in range(search.population_size):
                shares = search.ask()
                model = mixed(candidate.name, [even, *shares])
                told.append((shares, -vectors.judged(model)))
                if vectors.judged(model) > best_score:
                    best, best_score = model, vectors.judged(model)
            search.tell(told)
        gain = round(best_score - score - recipe.min_delta, 9)
        if gain > 0 or (gain == 0 and recipe.tie == "accept"):
            num_refused = 0
            members, soup, score = [*members, candidate.name], best, best_score
    return members, soup, score


vector_models = st.builds(
    VectorModels, seed=st.integers(0, 10**6), num=st.integers(1, 7), sign=st.sampled_from([1, -1])
)
recipes = st.builds(
    Manifold,
    tau=st.sampled_from([0.9, 0.998, 1.0]),
    budget=st.sampled_from([0, 2, 6]),
    max_components=st.sampled_from([2, 16]),
    tie=st.sampled_from(["accept", "strict"]),
    min_delta=st.sampled_from([0.0, 0.02]),
    patience=st.sampled_from([None, 1, 2]),
)


@settings(deadline=None, max_examples=60)
@given(vectors=vector_models, recipe=recipes, stops_early=st.booleans())
def test_it_makes_the_textbooks_soup_whatever_is_stopped_early(
    vectors: VectorModels, recipe: Manifold, stops_early: bool
) -> None:
    soup, answers = vectors.run_recipe(recipe, stops_early)
    tastes = sum(len(a.tried if isinstance(a, FirstResult) else a.scores) for a in answers)  # type: ignore[union-attr]
    assert tastes <= recipe.most_tastes(len(vectors.pool))
    members, model, score = textbook(vectors, recipe)
    assert list(soup.mix.names) == members
    assert soup.score == score == vectors.score(soup.mix)
    rows = {each.prefix: each.weights for each in soup.mix.components}
    shared = tuple(weight for _, weight in soup.mix.weights)
    for key in vectors.goal:
        terms = zip(members, rows.get(key, shared), strict=True)
        blend = sum(w * vectors.models[name][key] for name, w in terms) / soup.mix.divisor
        np.testing.assert_allclose(blend, model[key], rtol=1e-9, atol=1e-12)
    assert soup.score >= max(each.score for each in vectors.pool)
    assert len(soup.decisions) == len(vectors.pool)
    for num, asked in enumerate(vectors.asked):
        assert advance(recipe, vectors.pool[::-1], tuple(answers[:num]), vectors.context) == asked


def test_a_search_stays_within_its_budget_and_its_bounds() -> None:
    vectors = VectorModels(seed=1, num=4)
    recipe = Manifold(tau=0.1, budget=5)
    vectors.run_recipe(recipe)
    first = next(each for each in vectors.asked if isinstance(each, Taste))
    own = [c.weights[1] for mix in first.mixes for c in mix.components]
    assert 0.25 <= min(own) < max(own) <= 0.75, "beside one model, half the way either side"
    by_candidate: dict[str, int] = {}
    for each in vectors.asked:
        if isinstance(each, Taste):
            name = each.mixes[0].weights[-1][0]
            by_candidate[name] = by_candidate.get(name, 0) + len(each.mixes)
    assert len(by_candidate) == 3
    assert set(by_candidate.values()) == {16}, "two generations of 8, not above 5 x 4"


def test_a_hopeless_candidate_gets_no_search_and_a_reason() -> None:
    vectors = VectorModels(seed=1, num=2)
    best, other = sorted(vectors.pool, key=lambda each: -each.score)
    bad = FirstResult(index=None, tried=(TasteResult(score=None, at_most=0.1, samples=9),))
    soup = advance(Manifold(), vectors.pool, (bad,), vectors.context)
    assert isinstance(soup, Soup)
    assert soup.mix.single == best.name
    assert soup.decisions[1].candidate == other.name
    assert soup.decisions[1].at_most == 0.1
    assert "at most 0.1000" in soup.decisions[1].reason


def test_patience_names_the_candidates_it_does_not_offer() -> None:
    vectors = VectorModels(seed=1, num=3)
    bad = FirstResult(index=None, tried=(TasteResult(score=None, at_most=0.1, samples=9),))
    soup = advance(Manifold(patience=1), vectors.pool, (bad,), vectors.context)
    assert isinstance(soup, Soup)
    assert soup.decisions[2].reason == "not offered after 1 refusal"


@pytest.mark.parametrize("score", [0.8, -0.8])
def test_the_threshold_is_below_the_score_whatever_its_sign(score: float) -> None:
    pool = tuple(Ingredient(name=n, run=n, score=score) for n in "ab")
    asked = advance(Manifold(), pool, (), RecipeContext(base="base/0"))
    assert isinstance(asked, FirstAtLeast)
    assert asked.at_least == pytest.approx(score - 0.0016)


def test_a_model_without_components_has_one_share() -> None:
    vectors = VectorModels(seed=3, num=3)
    context = vectors.context.model_copy(update={"components": ()})
    even = TasteResult(score=0.9, at_most=0.9, samples=50)
    answers = (FirstResult(index=0, tried=(even,)),)
    asked = advance(Manifold(), vectors.pool, answers, context)
    assert isinstance(asked, Taste)
    assert len(asked.mixes) == 4 and not any(mix.components for mix in asked.mixes)
    assert len({mix.key for mix in asked.mixes}) == 4


def test_one_ingredient_is_its_own_soup_and_asks_nothing() -> None:
    vectors = VectorModels(seed=0, num=1)
    soup = advance(Manifold(), vectors.pool, (), vectors.context)
    assert isinstance(soup, Soup) and soup.mix.single == vectors.pool[0].name


def test_neighbours_are_grouped_in_order() -> None:
    assert grouped(tuple("abcde"), 2) == (("a", "b"), ("c", "d", "e"))
    assert grouped(tuple("abc"), 9) == (("a",), ("b",), ("c",))
    assert grouped((), 4) == ()
