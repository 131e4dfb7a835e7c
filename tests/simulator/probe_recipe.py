"""A small recipe that asks everything there is to ask, for tests of the machine around it."""

from collections.abc import Generator
from dataclasses import dataclass

from workers.recipes.best import by_score
from workers.types import (
    Answer,
    Component,
    GramMatrices,
    GramResult,
    Ingredient,
    Mix,
    MixGradient,
    MixGradientResult,
    Question,
    RecipeContext,
    Soup,
    Taste,
    TasteResults,
)


@dataclass(frozen=True)
class ProbeRecipe:
    """A few steps downhill from the mean, a component each, the base among the members."""

    steps: int = 3
    lr: float = 0.1

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        names = tuple(each.name for each in by_score(ingredients))
        grams = yield GramMatrices(names=names, base=context.base)
        assert isinstance(grams, GramResult) and context.num_selection > 0
        prefixes = ("", *context.components[-1:])
        rows = [[1.0] * len(names) + [0.0] for _ in prefixes]
        for step in range(self.steps):
            slope = yield MixGradient(
                mix=self._mix(names, context, prefixes, rows),
                components=prefixes,
                epoch=step,
                batch=0,
                batch_size=8,
            )
            assert isinstance(slope, MixGradientResult)
            for row, slopes in zip(rows, slope.weights, strict=True):
                row[:] = [w - self.lr * s for w, s in zip(row, slopes, strict=True)]
        mix = self._mix(names, context, prefixes, rows)
        only_base = Mix.mean([context.base])
        best = Mix.mean([names[0]])
        told = yield Taste(mixes=(mix, only_base, best), hits=True)
        assert isinstance(told, TasteResults) and all(told.hits)
        return Soup(mix=mix, score=told.scores[0])

    def _mix(
        self,
        names: tuple[str, ...],
        context: RecipeContext,
        prefixes: tuple[str, ...],
        rows: list[list[float]],
    ) -> Mix:
        return Mix(
            weights=tuple(zip((*names, context.base), rows[0], strict=True)),
            divisor=float(len(names)),
            components=tuple(
                Component(prefix=prefix, weights=tuple(row))
                for prefix, row in zip(prefixes[1:], rows[1:], strict=True)
            ),
        )


@dataclass(frozen=True)
class OnlyBase:
    """The base alone: no ingredient at all."""

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        mix = Mix.mean([context.base])
        told = yield Taste(mixes=(mix,))
        assert isinstance(told, TasteResults)
        return Soup(mix=mix, score=told.scores[0])
