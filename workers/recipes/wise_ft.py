"""The recipe `wise_ft`: a point on the line from the base to the fine-tuned weights."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from workers.recipes.best import by_score
from workers.types import (
    Answer,
    Decision,
    Ingredient,
    Mix,
    Question,
    RecipeContext,
    Soup,
    Taste,
    TasteResults,
)

Alpha = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class WiseFt:
    """WiSE-FT (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).

    theta = (1 - alpha) * base + alpha * fine-tuned. The alpha with the highest selection score is
    chosen, the first among equals: in the default order the one nearest to the base. Robustness to
    other data often peaks at a lower alpha than the selection split does; the decisions contain
    all scores. Assumes that the base has a trained head, from `base.probe_epochs` for instance:
    points between a random head and a trained one are of little use.
    """

    needs_base: ClassVar[bool] = True

    alphas: Annotated[tuple[Alpha, ...], Field(min_length=1)] = (
        0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0,
    )  # fmt: skip
    of: Literal["best", "uniform"] = "best"
    """The fine-tuned weights: the best single model, or the mean of all."""

    def most_tastes(self, count: int) -> int:
        """Passes over the selection split with `count` ingredients, for estimates."""
        return 1 + len(self.alphas)

    def path(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> tuple[tuple[float, Mix], ...]:
        """(alpha, mix) of every point that is tasted, in order: a curve of the report."""
        members = [ingredient.name for ingredient in by_score(ingredients)]
        members = members[:1] if self.of == "best" else members
        return tuple((alpha, between(context.base, members, alpha)) for alpha in self.alphas)

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        mixes = tuple(mix for _, mix in self.path(ingredients, context))
        answer = yield Taste(mixes=mixes)
        assert isinstance(answer, TasteResults)
        chosen = answer.scores.index(max(answer.scores))
        decisions = tuple(
            _decision(alpha, score, self.alphas[chosen], i == chosen)
            for i, (alpha, score) in enumerate(zip(self.alphas, answer.scores, strict=True))
        )
        return Soup(mix=mixes[chosen], score=answer.scores[chosen], decisions=decisions)


def between(base: str, members: list[str], alpha: float) -> Mix:
    """(1 - alpha) * base + alpha * mean of the members, which come first: their BatchNorm
    statistics are kept. At the ends the base itself, and the same mean that other recipes taste."""
    if alpha == 0:
        return Mix.mean([base])
    if alpha == 1:
        return Mix.mean(members)
    size = len(members)
    # Rounded, to write 0.1 instead of 0.09999999999999998 for 1 - 0.9.
    rest = round((1 - alpha) * size, 12)
    weights = (*((name, alpha) for name in members), (base, rest))
    return Mix(weights=weights, divisor=float(size))


def _decision(alpha: float, score: float, best: float, chosen: bool) -> Decision:
    reason = (
        f"the highest selection score, {score:.4f}"
        if chosen
        else f"its score {score:.4f} is not above that of alpha {best:g}"
    )
    return Decision(candidate=f"alpha {alpha:g}", accepted=chosen, after=score, reason=reason)
