"""Random tables of scores for mixes, which answer the questions of recipes."""

import random
from collections.abc import Iterable

from hypothesis import strategies as st

from workers.merging.recipe_driver import advance
from workers.recipes import Recipe
from workers.types import (
    Answer,
    FirstAtLeast,
    FirstResult,
    Ingredient,
    Mix,
    RecipeContext,
    Soup,
    Taste,
    TasteResult,
    TasteResults,
)

NUM_IMAGES = 20
"""So few that ties are common."""
CONTEXT = RecipeContext(base="base/b", seed=5, num_selection=NUM_IMAGES)


class Table:
    """Random hits of every mix, a function of the mix's weights."""

    def __init__(self, seed: int, num: int) -> None:
        self.seed = seed
        names = [f"run{i}/00000001" for i in range(num)]
        self.pool = tuple(
            Ingredient(name=name, run=name.split("/")[0], score=self.score(Mix.mean([name])))
            for name in names
        )

    def right(self, mix: Mix) -> list[bool]:
        draw = random.Random(f"{self.seed} {mix.key}")
        share = draw.random()
        return [draw.random() < share for _ in range(NUM_IMAGES)]

    def score(self, mix: Mix) -> float:
        return sum(self.right(mix)) / NUM_IMAGES

    def mean(self, names: Iterable[str]) -> float:
        return self.score(Mix.mean(list(names)))

    def hits(self, mix: Mix) -> str:
        bits = "".join("01"[each] for each in self.right(mix)) + "0000"
        return f"{int(bits, 2):06x}"

    def best_first(self) -> list[Ingredient]:
        return sorted(self.pool, key=lambda each: (-each.score, each.run))


tables = st.builds(Table, seed=st.integers(0, 10**6), num=st.integers(1, 9))


def answer(table: Table, question: FirstAtLeast | Taste, stops_early: bool) -> Answer:
    if isinstance(question, Taste):
        hits = tuple(table.hits(mix) for mix in question.mixes) if question.hits else ()
        return TasteResults(scores=tuple(table.score(mix) for mix in question.mixes), hits=hits)
    tried = []
    for index, mix in enumerate(question.mixes):
        score = table.score(mix)
        met = question.is_met_by(score)
        if met or not stops_early:
            tried.append(TasteResult(score=score, at_most=score, samples=NUM_IMAGES))
        else:
            tried.append(TasteResult(score=None, at_most=question.at_least - 0.01, samples=7))
        if met:
            return FirstResult(index=index, tried=tuple(tried))
    return FirstResult(index=None, tried=tuple(tried))


def run_recipe(
    table: Table, recipe: Recipe, stops_early: bool = True
) -> tuple[Soup, list[FirstAtLeast | Taste]]:
    """The soup, and every question on the way."""
    answers: list[Answer] = []
    questions: list[FirstAtLeast | Taste] = []
    while True:
        outcome = advance(recipe, table.pool, tuple(answers), CONTEXT)
        if isinstance(outcome, Soup):
            return outcome, questions
        assert isinstance(outcome, FirstAtLeast | Taste)
        questions.append(outcome)
        answers.append(answer(table, outcome, stops_early))
