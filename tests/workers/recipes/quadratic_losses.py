"""A small float64 network that answers the questions of recipes that learn, with all ingredients in
memory, and autograd through all of them to compare with."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call

from workers.merging.recipe_driver import advance
from workers.recipes import Recipe
from workers.types import (
    Answer,
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

Weights = dict[str, Tensor]


@dataclass
class Bench:
    """Ingredients `a`, `b`, ... near one base; a selection split of random images."""

    net: nn.Module
    base: Weights
    members: dict[str, Weights]
    images: Tensor
    labels: Tensor
    context: RecipeContext
    asked: list[Question] = field(default_factory=list)

    @cached_property
    def pool(self) -> tuple[Ingredient, ...]:
        scores = (self.judged(Mix.mean([name]))[0] for name in self.members)
        return tuple(
            Ingredient(name=name, run=name, score=score)
            for name, score in zip(self.members, scores, strict=True)
        )

    def blended(self, mix: Mix) -> Weights:
        """The definition: of several prefixes that fit a tensor the longest one applies."""
        blend = {}
        for key in self.base:
            fit = [c for c in mix.components if key == c.prefix or key.startswith(c.prefix + ".")]
            own = max(fit, key=lambda c: len(c.prefix)).weights if fit else None
            weights = own or tuple(weight for _, weight in mix.weights)
            terms = zip(mix.weights, weights, strict=True)
            blend[key] = sum(w * self.members[name][key] for (name, _), w in terms) / mix.divisor
        return blend

    def loss(self, weights: Weights, batch: slice, temperature: Tensor | float = 1.0) -> Tensor:
        logits = functional_call(self.net, weights, self.images[batch])
        return nn.functional.cross_entropy(temperature * logits, self.labels[batch])

    def judged(self, mix: Mix) -> tuple[float, float]:
        """Accuracy and negative log-likelihood."""
        with torch.no_grad():
            weights = self.blended(mix)
            logits = functional_call(self.net, weights, self.images)
            right = (logits.argmax(1) == self.labels).double().mean()
            return float(right), float(self.loss(weights, slice(None)))

    def batch(self, question: MixGradient) -> slice:
        start = question.batch * question.batch_size
        return slice(start, start + question.batch_size)

    def answer(self, question: Question) -> Answer:
        self.asked.append(question)
        if isinstance(question, Taste):
            judged = [self.judged(mix) for mix in question.mixes]
            return TasteResults(scores=tuple(j[0] for j in judged), nll=tuple(j[1] for j in judged))
        if isinstance(question, GramMatrices):
            return self._grams(question)
        assert isinstance(question, MixGradient)
        return self._slope(question)

    def _grams(self, question: GramMatrices) -> GramResult:
        assert question.base == self.context.base
        tensors = {}
        for key, zero in self.base.items():
            deltas = torch.stack([(self.members[n][key] - zero).flatten() for n in question.names])
            gram = (deltas @ deltas.T).numpy()
            tensors[key] = tuple(gram[np.triu_indices(len(gram))].tolist())
        return GramResult(tensors=tensors)

    def _slope(self, question: MixGradient) -> MixGradientResult:
        """Autograd to the blended tensors, then a projection for every prefix and checkpoint."""
        blend = {k: t.requires_grad_() for k, t in self.blended(question.mix).items()}
        temperature = torch.tensor(question.temperature, dtype=torch.float64, requires_grad=True)
        loss = self.loss(blend, self.batch(question), temperature)
        found = torch.autograd.grad(loss, [*blend.values(), temperature])
        slopes = dict(zip([*blend, "temperature"], found, strict=True))
        rows = []
        for prefix in question.components:
            own = [key for key in blend if _holder(key, question.components) == prefix]
            rows.append(
                tuple(
                    sum(float((slopes[k] * self.members[name][k]).sum()) for k in own)
                    / question.mix.divisor
                    for name, _ in question.mix.weights
                )
            )
        warmer = slopes["temperature"].item()
        return MixGradientResult(loss=loss.item(), weights=tuple(rows), temperature=warmer)

    def run_recipe(self, recipe: Recipe) -> tuple[Soup, list[Answer]]:
        """The soup and all answers; the recipe is replayed after every answer."""
        answers: list[Answer] = []
        while True:
            outcome = advance(recipe, self.pool, tuple(answers), self.context)
            if isinstance(outcome, Soup):
                return outcome, answers
            answers.append(self.answer(outcome))


def _near(tensor: Tensor) -> Tensor:
    spread = 0.3 * tensor.std() if tensor.numel() > 1 else torch.tensor(0.1)
    return tensor + (spread + 0.01) * torch.randn_like(tensor)


def _holder(key: str, prefixes: tuple[str, ...]) -> str:
    fit = [p for p in prefixes if not p or key == p or key.startswith(p + ".")]
    return max(fit, key=len)


def bench(num: int = 3, num_images: int = 24, seed: int = 0) -> Bench:
    """A real ViT of 32 pixels, ingredients at random around its weights."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net = timm.create_model("test_vit", num_classes=4, img_size=32).double().eval()
    base = {key: tensor.detach().clone() for key, tensor in net.named_parameters()}
    members = {name: {k: _near(t) for k, t in base.items()} for name in "abcdefgh"[:num]}
    components = ("patch_embed", *(f"blocks.{i}" for i in range(len(net.blocks))), "norm", "head")
    context = RecipeContext(
        base="base/0", components=components, seed=seed, num_selection=num_images
    )
    images = torch.randn(num_images, 3, 32, 32, dtype=torch.float64)
    return Bench(net, base, members, images, torch.randint(4, (num_images,)), context)
