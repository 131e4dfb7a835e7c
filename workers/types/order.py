"""What orders have in common."""

from typing import Literal

from workers.spec import BaseSpec, DataSpec
from workers.types.nouns import Metric, Value


class Setting(Value):
    """What every order of an experiment has in common; a worker is built with it."""

    uri: str
    """Of the experiment: `<storage>/<name>`."""
    seed: int
    data: DataSpec
    base: BaseSpec
    metric: Metric
    batchnorm_samples: int
    ranks: int = 1
    threads: int = 1
    """torch threads per rank; fixes the bits on a CPU."""
    device: Literal["cpu", "cuda"] = "cpu"
    cache_dir: str | None = None
    """Node-local folder for files of a remote store."""


class Order(Value):
    """Something to be done, once. `place`: a training slot, or the merge actor."""

    @property
    def id(self) -> str:
        raise NotImplementedError

    @property
    def place(self) -> Literal["slot", "merge"]:
        return "slot"

    @property
    def run_id(self) -> str | None:
        return None
