"""Which function performs which order. Imports are late: a rank never loads what it won't use."""

import importlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from workers.types import AnyEvent, AnyOrder

if TYPE_CHECKING:
    from workers.worker import Worker

Perform = Callable[[Any, int, "Worker"], Iterator[AnyEvent]]

PERFORMERS = {
    "preflight": "workers.preflight:preflight",
    "base": "workers.base:make_base",
    "train": "workers.train:train",
    "adopt": "workers.foreign:adopt",
    "merge": "workers.merge:merge",
    "geometry": "workers.geometry:geometry",
    "gradient": "workers.gradient:gradient",
    "taste": "workers.tasting:taste",
    "blend": "workers.soups:blend_soup",
    "diversity": "workers.diversity:diversity",
    "score": "workers.scoring:score",
    "point": "workers.scoring:point",
    "compare": "workers.compare:compare",
    "analyse": "workers.analysis.analyse:analyse",
    "serve": "workers.soups:serve",
    "retire": "workers.retire:retire",
}


def performer(order: AnyOrder) -> Perform:
    """A train order for weights from elsewhere trains nothing: they are adopted."""
    adopts = order.kind == "train" and order.run.train.weights is not None
    module, _, function = PERFORMERS["adopt" if adopts else order.kind].partition(":")
    return cast(Perform, getattr(importlib.import_module(module), function))
