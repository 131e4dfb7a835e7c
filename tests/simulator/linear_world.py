"""A simulated world whose models are linear classifiers, so that all its numbers agree.

    weights of a run = base + progress * (truth - base) + noise of the run
    logits           = features @ weights

Soups are averages of weights; `geometry`, `compare` and `analyse` are the workers' own.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from tests.simulator.experiment import facts
from tests.simulator.world import World
from workers.analysis.analyse import analyse
from workers.heartbeat import Progress
from workers.merging import gram
from workers.scoring import compare, metrics
from workers.storage.layout import ANALYSIS
from workers.storage.predictions import write_predictions
from workers.types import (
    SELECTION,
    AnyEvent,
    Checkpointed,
    GradientOrder,
    Mix,
    MixGradientResult,
    Preflighted,
    Score,
    Started,
    TasteOrder,
    TasteResult,
    component_of,
)

COMPONENTS = ("stem", "stages.0", "stages.1", "head")
NUM_FEATURES, NUM_CLASSES = 12, 10
"""Features per component."""
COUNTS = {"train": 320, "val": 400, "test": 600, "ood:sketch": 500}
BLUR = {"ood:sketch": 1.0}
"""Standard deviation of the noise on a split's features."""


@dataclass
class LinearWorld(World):
    noise: tuple[float, ...] = (1.0,)
    """Distance of each run from the truth, in configured order; the last holds for the rest."""
    mixes: dict[str, Mix] = field(default_factory=dict)
    """Mixes by the names of soups and of scored points."""
    _splits: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def analysis(self) -> Any:
        return json.loads(self.store.read(ANALYSIS))

    # Models: (component, feature, class)

    def weights(self, name: str) -> np.ndarray:
        shape = (len(COMPONENTS), NUM_FEATURES, NUM_CLASSES)
        if name in self.mixes:
            return self.blend(self.mixes[name])
        base = 0.3 * _rng("base").normal(size=shape)
        if name.startswith("base/"):
            return base
        run, _, step = name.partition("/")
        index = [spec.id for spec in self.expanded.runs].index(run.removesuffix("-ema"))
        scale = self.noise[min(index, len(self.noise) - 1)]
        end = _rng("truth").normal(size=shape) + scale * _rng(f"run {index}").normal(size=shape)
        progress = 1 - 0.5 ** (int(step) / 10)
        return base + progress * (end - base)

    def blend(self, mix: Mix) -> np.ndarray:
        rows = [self._shares(mix, prefix) for prefix in COMPONENTS]
        models = np.stack([self.weights(name) for name, _ in mix.weights])
        return np.einsum("cm,mcfk->cfk", np.array(rows), models)

    def _shares(self, mix: Mix, prefix: str) -> list[float]:
        components = {component.prefix: component.weights for component in mix.components}
        default = tuple(weight for _, weight in mix.weights)
        fitting = components.get(component_of(f"{prefix}.weight", tuple(components)) or "", default)
        return [weight / mix.divisor for weight in fitting]

    def content(self, name: str) -> bytes:
        weights = self.weights(name).astype(np.float32)
        return save(
            {f"{part}.weight": rows for part, rows in zip(COMPONENTS, weights, strict=True)}
        )

    # Images

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Features (image, component, feature) and labels."""
        if name not in self._splits:
            rng = _rng(name)
            features = rng.normal(size=(COUNTS[name], len(COMPONENTS), NUM_FEATURES))
            truth = _rng("truth").normal(size=(len(COMPONENTS), NUM_FEATURES, NUM_CLASSES))
            logits = np.einsum("ncf,cfk->nk", features, truth)
            labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
            blurred = features + BLUR.get(name, 0.0) * rng.normal(size=features.shape)
            self._splits[name] = blurred, labels
        return self._splits[name]

    def logits(self, weights: np.ndarray, split: str) -> np.ndarray:
        return np.einsum("ncf,cfk->nk", self.split(split)[0], weights).astype(np.float32)

    def _measure(self, weights: np.ndarray, split: str) -> Score:
        return metrics.score(self.logits(weights, split), self.split(split)[1])

    def score(self, mix: Mix) -> float:
        return self._measure(self.blend(mix), SELECTION).top1

    def _scored(self, name: str, split: str) -> Score:
        return self._measure(self.weights(name), split)

    def _predict(self, checkpoint_id: str, name: str, split: str) -> None:
        labels = self.split(split)[1]
        keys = [f"{split}/{number:04d}" for number in range(len(labels))]
        logits = self.logits(self.weights(name), split)
        write_predictions(self.store, checkpoint_id, split, keys, labels, logits)

    # Performing

    def _preflight(self, order: Any, attempt: int) -> Iterator[AnyEvent]:
        yield Started(warm=False, gap_s=None)
        yield Preflighted(facts=self._facts())

    def _facts(self) -> Any:
        small = facts(self.expanded)
        classes = tuple(str(digit) for digit in range(NUM_CLASSES))
        splits = {
            name: split.model_copy(
                update={
                    "count": COUNTS[name],
                    "fingerprint": name[0] * 64,
                    "class_counts": (COUNTS[name] // NUM_CLASSES,) * NUM_CLASSES,
                }
            )
            for name, split in small.splits.items()
        }
        models = {
            key: model.model_copy(update={"components": COMPONENTS})
            for key, model in small.models.items()
        }
        changes = {"classes": classes, "splits": splits, "models": models}
        changes |= {"corrupt": ("7/broken.png",), "warnings": ("7/broken.png does not decode",)}
        return small.model_copy(update=changes)

    def _checkpointed(self, name: str, attempt: int, step: int) -> Checkpointed:
        event = super()._checkpointed(name, attempt, step)
        self._predict(event.checkpoint.id, name, SELECTION)
        return event

    def tasting(self, order: TasteOrder) -> TasteResult:
        """Complete, or a bound for a mix that is far below the bar."""
        assert not order.hits, "no recipe of this world's scenarios asks for them"
        score, bar = self._measure(self.blend(order.mix), SELECTION), order.at_least
        if bar is not None and score.top1 < bar - 0.02:
            return TasteResult(score=None, at_most=bar - 1 / score.count, samples=160)
        return TasteResult(score=score.top1, at_most=score.top1, samples=score.count, nll=score.nll)

    def _blend(self, order: Any, attempt: int) -> Iterator[AnyEvent]:
        self.mixes[order.name] = order.soup.mix
        yield from super()._blend(order, attempt)

    def _score(self, order: Any, attempt: int) -> Iterator[AnyEvent]:
        if order.kind == "point":
            self.mixes[order.name] = order.mix
        else:
            for split in order.splits:
                self._predict(order.checkpoint.id, order.checkpoint.name, split)
        yield from super()._score(order, attempt)

    _point = _score

    def _geometry(self, order: Any, attempt: int) -> Iterator[AnyEvent]:
        yield Started(warm=True, gap_s=0.01)
        yield from gram.measure_gram_matrices(order, attempt, self._worker())

    def _compare(self, order: Any, attempt: int) -> Iterator[AnyEvent]:
        yield Started(warm=True, gap_s=0.01)
        yield from compare.compare(order, attempt, self._worker())

    def _analyse(self, order: Any, attempt: int) -> Iterator[AnyEvent]:
        yield Started(warm=True, gap_s=0.01)
        yield from analyse(order, attempt, self._worker())

    def _gradient(self, order: GradientOrder, attempt: int) -> Iterator[AnyEvent]:
        yield Started(warm=True, gap_s=0.01)
        yield self._measured(order, self._slope(order.question), order.question.batch_size)

    def _slope(self, question: Any) -> MixGradientResult:
        """Gradient of the cross-entropy on the whole selection split."""
        features, labels = self.split(SELECTION)
        logits = np.einsum("ncf,cfk->nk", features, self.blend(question.mix))
        log_probabilities = metrics.log_softmax(question.temperature * logits)
        errors = (np.exp(log_probabilities) - np.eye(NUM_CLASSES)[labels]) / len(labels)
        models = np.stack([self.weights(name) for name, _ in question.mix.weights])
        downhill = question.temperature * np.einsum("nk,ncf,mcfk->cm", errors, features, models)
        rows = dict.fromkeys(question.components, np.zeros(len(models)))
        for prefix, row in zip(COMPONENTS, downhill / question.mix.divisor, strict=True):
            owner = component_of(f"{prefix}.weight", question.components) or ""
            rows[owner] = rows[owner] + row
        return MixGradientResult(
            loss=float(-log_probabilities[np.arange(len(labels)), labels].mean()),
            weights=tuple(tuple(map(float, row)) for row in rows.values()),
            temperature=float((errors * logits).sum()),
        )

    def _worker(self) -> Any:
        """The part of a WorkerContext that the performers of these orders use."""
        soup = self.expanded.experiment.soup
        return SimpleNamespace(
            store=self.store,
            config=SimpleNamespace(metric=soup.metric, seed=self.expanded.experiment.seed),
            images=SimpleNamespace(classes=self._facts().classes),
            progress=Progress(),
            model=lambda config: torch.nn.Identity(),
        )


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))
