"""Weight space against one flat vector per model in memory."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.workers.small_runs import RESNET, make_base, make_setting
from workers.analysis.weight_space import (
    cosines,
    lengths,
    measure_weight_space,
    tensors_by_component,
)
from workers.context import WorkerContext
from workers.merging.batchnorm import statistics
from workers.storage.checkpoint_writer import write_checkpoint
from workers.storage.checkpoints import open_weights
from workers.types import Checkpoint, Cohort, WeightSpaceGroup


@dataclass
class Around:
    """A base and models around it."""

    worker: WorkerContext
    weighed: WeightSpaceGroup


PREFIXES = ("layer1", "fc")


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Around:
    config = make_setting(tmp_path_factory.mktemp("around"))
    base = make_base(config, RESNET)
    worker = WorkerContext(config)
    made = []
    for i in range(3):
        torch.manual_seed(i)
        with open_weights(worker.store, base) as weights:
            moved = {name: _moved(tensor, 0.1 * (i + 1)) for name, tensor in weights.items()}
        made.append(write_checkpoint(worker.store, f"run{i}/{1:08d}", 0, 1, moved))
    cohort = Cohort(id="c", model=RESNET, base=base.name, batchnorm="recompute")
    return Around(
        worker,
        WeightSpaceGroup(cohort=cohort, base=base, ingredients=tuple(made), components=PREFIXES),
    )


def _moved(tensor: Tensor, by: float) -> Tensor:
    return tensor + by * torch.randn_like(tensor) if tensor.is_floating_point() else tensor + 1


def test_a_tensor_belongs_to_the_longest_prefix_that_fits() -> None:
    names = ["stem.w", "block.1.w", "block.10.w", "block.1.norm.w", "head"]
    found = tensors_by_component(names, ("stem", "block.1", "block.1.norm", "unused"))
    assert found == {
        "stem": ["stem.w"],
        "block.1": ["block.1.w"],
        "block.1.norm": ["block.1.norm.w"],
        "": ["block.10.w", "head"],
    }
    assert tensors_by_component(["a"], ()) == {"": ["a"]}


def test_geometry_is_that_of_the_flat_vectors(around: Around) -> None:
    base, ingredients, store = around.weighed.base, around.weighed.ingredients, around.worker.store
    found = measure_weight_space(around.weighed, around.worker)
    skipped = statistics(around.worker.model(RESNET))

    def flat(checkpoint: Checkpoint, prefix: str | None) -> np.ndarray:
        with open_weights(store, checkpoint) as weights:
            return torch.cat(
                [
                    tensor.double().ravel()
                    for name, tensor in weights.items()
                    if tensor.is_floating_point()
                    and name not in skipped
                    and (prefix is None or tensors_by_component([name], PREFIXES).get(prefix))
                ]
            ).numpy()

    whole = {"prefix": None, "distance": found["distance"], "cosines": found["cosines"]}
    for part in [whole, *found["components"]]:
        start = flat(base, part["prefix"])  # type: ignore[arg-type]
        moved = np.stack([flat(each, part["prefix"]) - start for each in ingredients])  # type: ignore[arg-type]
        length = np.linalg.norm(moved, axis=1)
        np.testing.assert_allclose(part["distance"], length, rtol=1e-9)
        np.testing.assert_allclose(
            part["cosines"], moved @ moved.T / np.outer(length, length), atol=1e-9
        )
    assert [each["prefix"] for each in found["components"]] == ["layer1", "fc", ""]
    num_values = sum(each["num_values"] for each in found["components"])
    assert num_values == len(flat(base, None))
    assert found["base_norm"] == pytest.approx(np.linalg.norm(flat(base, None)))
    assert found["ids"] == [each.id for each in ingredients]


def test_an_ingredient_equal_to_the_base_has_no_direction() -> None:
    inner = np.array([[4.0, 0.0], [0.0, 0.0]])
    assert lengths(inner) == [2.0, 0.0]
    found = np.array(cosines(inner), np.float64)
    assert found[0, 0] == 1 and np.isnan([found[0, 1], found[1, 0], found[1, 1]]).all()


def test_rounding_gives_no_cosine_beyond_one() -> None:
    inner = np.array([[3.0, 3.0 + 1e-15], [3.0 + 1e-15, 3.0]])
    assert np.max(cosines(inner)) == 1
