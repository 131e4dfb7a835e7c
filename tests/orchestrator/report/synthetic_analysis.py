"""The story told on: soups of more recipes, and an analysis, made up from one set of logits.

    rng -> logits of every model on every split -> scores, differences, analysis.json

All numbers are of these logits, so that results and analysis agree as they do in life.
"""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from workers.scoring.metrics import log_softmax, predictions, score

Json = dict[str, Any]

COMPONENTS = ("stem", "stages.0", "stages.1", "stages.2", "head")
PARTS = ("val", "test", "ood:sketch")
NOISE = {"val": 1.0, "test": 1.05, "ood:sketch": 2.0}
"""How hard a split is."""


class Tale:
    """`known`: results with more soups; `analysis`: what analysis.json would hold."""

    def __init__(self, known: Json, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.known = copy.deepcopy(known)
        self.splits = [name for name in PARTS if name in known["splits"]]
        self.runs = [run for run in self.known["runs"] if run["status"] == "done"]
        self.ids = [run["representative"] for run in self.runs]
        self._cook()
        self._predict()
        self._score()
        self.analysis = self._analysis()

    def _cook(self) -> None:
        """A soup per recipe that the story does without."""
        first = next(soup for soup in self.known["soups"] if soup["recipe"] == "greedy")
        equal = [[id, 1.0] for id in self.ids]
        base = self.known["cohorts"][0]["base"]
        best = self.known["best_single"]["checkpoint"]
        dirichlet = self.rng.dirichlet(np.full(len(self.ids), 2.0), len(COMPONENTS) + 1).round(4)
        rows = [[float(value) for value in row] for row in dirichlet]
        learned = {
            "divisor": 1.0,
            "weights": [[id, w] for id, w in zip(self.ids, rows[0], strict=True)],
            "components": [
                {"prefix": prefix, "weights": row}
                for prefix, row in zip(COMPONENTS, rows[1:], strict=True)
            ],
        }
        mehl = [
            [id, w]
            for id, w in zip(self.ids, self.rng.normal(0.25, 0.3, len(self.ids)), strict=True)
        ]
        mixes: dict[str, Json] = {
            "greedy_random": {"divisor": 3.0, "weights": equal[:3]},
            "pruned": {"divisor": float(len(equal) - 1), "weights": equal[1:]},
            "model_stock": {"divisor": 1.0, "weights": [*_scaled(equal, 0.8), [base, 0.2]]},
            "learned": learned,
            "mehl": {"divisor": sum(w for _, w in mehl), "weights": mehl},
            "wise_ft": {"divisor": 1.0, "weights": [[best, 0.7], [base, 0.3]]},
        }
        for recipe, mix in mixes.items():
            soup = copy.deepcopy(first)
            soup |= {"id": f"soup/{recipe}-00000000", "recipe": recipe, "mix": mix, "options": {}}
            soup |= {"members": [id for id, _ in mix["weights"]], "tastes": len(recipe)}
            soup |= {"seconds": 2.5 * len(recipe), "decisions": list(_decisions(recipe, self.runs))}
            self.known["soups"].append(soup)

    def _predict(self) -> None:
        """Logits (N, C) by split and model; runs err together and each for itself."""
        classes = len(self.known["classes"])
        self.labels, self.logits = {}, {}
        for split in self.splits:
            count = self.known["splits"][split]["count"]
            labels = self.rng.integers(0, classes, count)
            hot = 5.0 * np.eye(classes)[labels]
            common = NOISE[split] * self.rng.normal(0, 1.6, (count, classes))
            own = {
                id: NOISE[split] * self.rng.normal(0, 1.3 + 0.1 * i, (count, classes))
                for i, id in enumerate(self.ids)
            }
            made = {id: 1.6 * (hot + common + noise) for id, noise in own.items()}
            for soup in self.known["soups"]:
                inside = [member for member in soup["members"] if member in own] or self.ids
                made[soup["id"]] = np.mean([made[member] for member in inside], axis=0)
            for each in self.known["ensembles"]:
                made[each["id"]] = np.mean([made[id] for id in self.ids], axis=0)
            self.labels[split], self.logits[split] = labels, made

    def _score(self) -> None:
        """Scores by the project's own metrics; intervals by the normal approximation."""
        best = self.known["best_single"]["checkpoint"]
        models = dict(zip(self.ids, self.runs, strict=True))
        models |= {each["id"]: each for each in self.known["soups"] + self.known["ensembles"]}
        for id, model in models.items():
            model["scores"] = {split: self._scores(split, id) for split in self.splits}
            if "vs_best_single" in model:
                model["vs_best_single"] = {s: self._delta(s, id, best) for s in self.splits}
        self.known["best_single"]["scores"] = models[best]["scores"]

    def _scores(self, split: str, id: str) -> Json:
        return score(self.logits[split][id], self.labels[split]).model_dump(exclude={"count"})

    def _hits(self, split: str, id: str) -> np.ndarray:
        return predictions(self.logits[split][id]) == self.labels[split]

    def _delta(self, split: str, id: str, best: str) -> Json:
        each = self._hits(split, id).astype(float) - self._hits(split, best)
        delta, half = float(each.mean()), 1.96 * float(each.std()) / len(each) ** 0.5
        p = 1.0 if not each.any() else float(min(1.0, np.exp(-((delta / (half or 1)) ** 2) * 2)))
        return {"metric": "top1", "delta": delta, "ci95": [delta - half, delta + half], "p": p}

    def _analysis(self) -> Json:
        models = [
            *({"id": id, "kind": "ingredient"} for id in self.ids),
            *({"id": soup["id"], "kind": "soup"} for soup in self.known["soups"]),
            *({"id": each["id"], "kind": "ensemble"} for each in self.known["ensembles"]),
        ]
        served, best = self.known["served"], self.known["best_single"]["checkpoint"]
        cohort = self.known["cohorts"][0]
        return {
            "schema": 1,
            "key": "0" * 12,
            "metric": "top1",
            "classes": self.known["classes"],
            "best_single": best,
            "served": served,
            "models": [
                {**m, "label": m["id"], "cohort": cohort["id"], "temperature": 1.6} for m in models
            ],
            "left_out": [],
            "splits": {
                split: self._split(split, [m["id"] for m in models], best, served)
                for split in self.splits
            },
            "geometry": [self._geometry(cohort)],
            "barrier": {
                "single": best,
                "soup": served,
                "fraction": [0.0, 0.5, 1.0],
                "score": [0.93, 0.937, 0.94],
                "height": -0.007,
            },
        }

    def _split(self, split: str, ids: list[str], best: str, served: str) -> Json:
        single, soup = self._hits(split, best), self._hits(split, served)
        return {
            "count": len(self.labels[split]),
            "models": {id: self._on_split(split, id) for id in ids},
            "details": {id: self._detail(split, id) for id in (best, served)},
            "bias_variance": {self.known["cohorts"][0]["id"]: self._bias_variance(split)},
            "map": self._map(split, ids),
            "paired": {
                "only_single": int((single & ~soup).sum()),
                "only_soup": int((soup & ~single).sum()),
                "detectable": 0.031,
            },
        }

    def _on_split(self, split: str, id: str) -> Json:
        labels, hits = self.labels[split], self._hits(split, id)
        per_class = [float(hits[labels == c].mean()) for c in range(len(self.known["classes"]))]
        plain, cool = (score(self.logits[split][id] / t, labels) for t in (1.0, 1.6))
        calibration = {"nll": plain.nll, "ece": plain.ece}
        calibration |= {"nll_scaled": cool.nll, "ece_scaled": cool.ece}
        known = {"top1": plain.top1, "per_class": per_class, "worst_class": min(per_class)}
        return {**known, "calibration": calibration}

    def _detail(self, split: str, id: str) -> Json:
        labels, logits = self.labels[split], self.logits[split][id]
        size = len(self.known["classes"])
        confusion = np.zeros((size, size), int)
        np.add.at(confusion, (labels, predictions(logits)), 1)
        return {
            "confusion": confusion.tolist(),
            "reliability": _reliability(logits, labels),
            "reliability_scaled": _reliability(logits / 1.6, labels),
        }

    def _bias_variance(self, split: str) -> Json:
        labels = self.labels[split]
        said = np.stack([predictions(self.logits[split][id]) for id in self.ids])
        main = np.array([np.bincount(column).argmax() for column in said.T])
        right, other = main == labels, said != main
        logs = np.stack([log_softmax(self.logits[split][id]) for id in self.ids])
        rows = np.arange(len(labels))
        nll = float(-logs[:, rows, labels].mean())
        nll_bias = float(-log_softmax(logs.mean(axis=0))[rows, labels].mean())
        return {
            "num_models": len(self.ids),
            "loss": float((said != labels).mean()),
            "bias": float((~right).mean()),
            "variance": float(other.mean()),
            "unbiased": float((other & right).mean()),
            "biased": float((other & ~right).mean()),
            "flipped": float((other & ~right & (said == labels)).mean()),
            "nll": nll,
            "nll_bias": nll_bias,
            "nll_variance": nll - nll_bias,
        }

    def _map(self, split: str, ids: list[str]) -> Json:
        """The first two principal directions of the log-probabilities."""
        flat = np.stack([log_softmax(self.logits[split][id]).ravel() for id in ids])
        u, s, _ = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
        x, y = (u[:, :2] * s[:2] / len(self.labels[split]) ** 0.5).T
        return {"ids": ids, "x": x.tolist(), "y": y.tolist(), "stress": 0.11}

    def _geometry(self, cohort: Json) -> Json:
        size = len(self.ids)

        def part(prefix: str, alike: float) -> Json:
            noise = self.rng.normal(0, 0.06, (size, size))
            cosines = np.clip(alike + (noise + noise.T) / 2, -1, 1)
            np.fill_diagonal(cosines, 1.0)
            cosines[-1, :-1] = cosines[:-1, -1] = 0.04
            distance = self.rng.uniform(2, 6, size).tolist()
            known = {"prefix": prefix, "num_values": 1000}
            return {**known, "distance": distance, "cosines": cosines.tolist()}

        parts = [part(prefix, 0.2 + 0.12 * i) for i, prefix in enumerate(COMPONENTS)]
        whole = {key: value for key, value in part("", 0.4).items() if key != "prefix"}
        about = {"cohort": cohort["id"], "base": cohort["base"], "ids": self.ids}
        return {**about, "base_norm": 55.0, **whole, "components": parts}


def _scaled(weights: list[list[Any]], by: float) -> list[list[Any]]:
    return [[id, by * weight / len(weights)] for id, weight in weights]


def _decisions(recipe: str, runs: list[Json]) -> Iterator[Json]:
    """What the recipe looked at; each kind has its own candidates."""
    nothing: Json = {"before": None, "at_most": None, "run": None}
    if recipe == "wise_ft":
        for tenth in range(11):
            alpha, after = tenth / 10, 0.5 + 0.44 * np.sin(tenth / 5.2)
            named = {"candidate": f"alpha {alpha:g}", "accepted": tenth == 7, "after": after}
            yield {**nothing, **named, "reason": f"scores {after:.4f}"}
        return
    for i, run in enumerate(runs):
        named = {"candidate": run["representative"], "run": run["id"], "accepted": i % 3 != 2}
        if recipe in ("greedy_random", "pruned"):
            before = 0.93 + 0.002 * i
            named |= {"before": before, "after": before + (0.004 if i % 3 != 2 else -0.01)}
        yield {**nothing, "after": None, **named, "reason": f"looked at in step {i + 1}"}
    if recipe in ("learned", "mehl"):
        for epoch in range(4):
            named = {"candidate": f"epoch {epoch}", "accepted": epoch == 3}
            yield {**nothing, **named, "after": 0.93 + 0.004 * epoch, "reason": "tasted"}


def _reliability(logits: np.ndarray, labels: np.ndarray) -> Json:
    confidence = np.exp(log_softmax(logits).max(axis=1))
    bins = np.clip(np.ceil(15 * confidence).astype(int) - 1, 0, 14)
    count = np.bincount(bins, minlength=15)
    hits = np.bincount(bins, predictions(logits) == labels, minlength=15)
    sure = np.bincount(bins, confidence, minlength=15)
    return {
        "count": count.tolist(),
        "confidence": [float(s / n) if n else None for s, n in zip(sure, count, strict=True)],
        "accuracy": [float(h / n) if n else None for h, n in zip(hits, count, strict=True)],
    }
