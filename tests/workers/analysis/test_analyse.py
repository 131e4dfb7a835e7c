"""The analysis of a small fleet: complete, reproducible, and right where that is easy to see."""

import json
from typing import Any

import numpy as np
import pytest

from tests.workers.analysis.synthetic_logits import decompose
from tests.workers.small_soups import VIT, Pool, make_pool
from workers.analysis.analyse import analyse, detectable
from workers.analysis.calibration import fit_temperature
from workers.scoring.compare import compare
from workers.scoring.metrics import ece, nll, score
from workers.storage.layout import ANALYSIS, WEIGHTS, checkpoint_dir, staged_path
from workers.storage.manifest import read_manifest
from workers.storage.predictions import read_predictions, write_predictions
from workers.types import Analysed, AnalysedModel, AnalyseOrder, CompareOrder, WeightSpaceGroup

SPLITS = ("val", "test")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """A pool with a soup whose predictions are those of soft voting, and both ensembles."""
    pool = make_pool(tmp_path_factory.mktemp("pool"), VIT)
    store, ids = pool.worker.store, tuple(each.id for each in pool.members)
    for split in SPLITS:
        keys, labels, _ = read_predictions(store, ids[0], split)
        mean = np.mean([read_predictions(store, each, split)[2] for each in ids], axis=0)
        write_predictions(store, "soup/s", split, keys, labels, mean)
    groups = tuple((each,) for each in ids)
    order = CompareOrder(
        best_single=ids[0], soups=("soup/s",), members=ids, splits=SPLITS, stacking=groups
    )
    list(compare(order, 0, pool.worker))
    return pool


def order_for(pool: Pool) -> AnalyseOrder:
    base = read_manifest(pool.worker.store, pool.cohort.base)
    assert base is not None
    ids = [each.id for each in pool.members]
    components = ("blocks.0", "head")
    runs = (AnalysedModel(id=each, kind="ingredient", label=each, cohort="c") for each in ids)
    return AnalyseOrder(
        best_single=ids[0],
        served="soup/s",
        subjects=(
            *runs,
            AnalysedModel(id="soup/s", kind="soup", label="uniform", cohort="c"),
            AnalysedModel(id="soup/b", kind="soup", label="best", cohort="c", predictions=ids[0]),
            AnalysedModel(id="soft_voting", kind="ensemble", label="soft_voting"),
            AnalysedModel(id="stacking", kind="ensemble", label="stacking"),
        ),
        weighed=(
            WeightSpaceGroup(
                cohort=pool.cohort,
                base=base.checkpoint,
                ingredients=pool.members,
                components=components,
            ),
        ),
        splits=SPLITS,
        path=((0.0, 0.7), (0.5, 0.6), (1.0, 0.75)),
    )


def analysis_of(pool: Pool) -> Any:
    """What the first attempt at the analysis left for the driver."""
    return json.loads(pool.worker.store.read(staged_path(order_for(pool).id, 0, ANALYSIS)))


def test_an_analysis_has_every_part_and_the_same_order_the_same_bytes(pool: Pool) -> None:
    order, store = order_for(pool), pool.worker.store
    (event,) = analyse(order, 0, pool.worker)
    assert isinstance(event, Analysed) and event.key == order.key
    content = store.read(staged_path(order.id, 0, ANALYSIS))
    list(analyse(order, 1, pool.worker))
    assert store.read(staged_path(order.id, 1, ANALYSIS)) == content
    found = json.loads(content)
    ids = [each.id for each in order.subjects]
    assert [each["id"] for each in found["models"]] == ids
    assert set(found["splits"]) == set(SPLITS)
    for split in SPLITS:
        part = found["splits"][split]
        judged = [each for each in ids if (each, split) != ("stacking", "val")]
        assert list(part["models"]) == judged == part["distances"]["ids"] == part["map"]["ids"]
        assert set(part["details"]) == {order.best_single, "soup/s"}
        assert part["count"] == part["distances"]["num_images"] == 150
    stacked = found["splits"]["test"]["models"]["stacking"]["calibration"]
    assert stacked["ece"] is not None, "fitted on val, so it has no temperature"
    assert stacked["ece_scaled"] is stacked["nll_scaled"] is found["models"][-1]["temperature"]
    (around,) = found["geometry"]
    assert [each["prefix"] for each in around["components"]] == ["blocks.0", "head", ""]
    assert found["barrier"]["height"] == pytest.approx(0.1)
    assert found["classes"] == list(pool.worker.images.classes)


def test_numbers_of_the_analysis_are_those_of_the_predictions(pool: Pool) -> None:
    order, store = order_for(pool), pool.worker.store
    list(analyse(order, 0, pool.worker))
    found = analysis_of(pool)
    for subject in order.subjects[:4]:
        _, labels, val = read_predictions(store, subject.id, "val")
        expected = fit_temperature(val, labels)
        (model,) = (each for each in found["models"] if each["id"] == subject.id)
        assert model["temperature"] == pytest.approx(expected, rel=1e-5)
        for split in SPLITS:
            _, labels, logits = read_predictions(store, subject.id, split)
            at = found["splits"][split]["models"][subject.id]
            scaled = logits.astype(np.float64) / expected
            assert at["top1"] == pytest.approx(score(logits, labels).top1, rel=1e-5)
            assert at["worst_class"] == pytest.approx(score(logits, labels).worst_class, rel=1e-5)
            said = at["calibration"]
            assert said["ece"] == pytest.approx(ece(logits, labels), rel=1e-5)
            assert said["ece_scaled"] == pytest.approx(ece(scaled, labels), rel=1e-4)
            assert said["nll_scaled"] == pytest.approx(nll(scaled, labels), rel=1e-5)
        val_said = found["splits"]["val"]["models"][subject.id]["calibration"]
        assert val_said["nll_scaled"] <= val_said["nll"]
    tables = [read_predictions(store, each.id, "test") for each in pool.members]
    expected = decompose([each[2] for each in tables], tables[0][1], 10)
    for name, value in found["splits"]["test"]["bias_variance"]["c"].items():
        assert value == pytest.approx(expected[name], rel=1e-5)  # type: ignore[literal-required]


def test_soft_voting_is_at_the_point_of_the_soup_with_its_predictions(pool: Pool) -> None:
    """A soup of one member is at the point of that member."""
    list(analyse(order_for(pool), 0, pool.worker))
    part = analysis_of(pool)["splits"]["test"]
    at = {name: i for i, name in enumerate(part["map"]["ids"])}
    apart = np.array(part["distances"]["jeffreys"])
    assert apart[at["soup/s"], at["soft_voting"]] == pytest.approx(0, abs=1e-9)
    assert apart[at["soup/b"], at[pool.members[0].id]] == 0
    assert apart[at["soup/b"], at["soup/s"]] > 1e-4


def test_images_that_only_one_gets_right_give_the_detectable_gain(
    pool: Pool,
) -> None:
    order, store = order_for(pool), pool.worker.store
    list(analyse(order, 0, pool.worker))
    paired = analysis_of(pool)["splits"]["test"]["paired"]
    tables = [read_predictions(store, each, "test") for each in (order.best_single, "soup/s")]
    single, soup = (logits.argmax(1) == labels for _, labels, logits in tables)
    assert paired["only_single"] == (single & ~soup).sum()
    assert paired["only_soup"] == (soup & ~single).sum()
    num = paired["only_single"] + paired["only_soup"]
    assert paired["detectable"] == pytest.approx(detectable(num, 150), rel=1e-5)


def test_a_detectable_gain_is_detected_with_a_power_of_80_percent() -> None:
    """By simulation: of 1,000 images a tenth is right for only one of two models."""
    rng = np.random.default_rng(0)
    gain = detectable(100, 1000)
    ours = rng.binomial(100, 0.5 + 0.5 * gain * 1000 / 100, size=20_000)
    found = np.abs(2 * ours - 100) / np.sqrt(100) > 1.96
    assert found.mean() == pytest.approx(0.8, abs=0.04)


def test_a_corrupt_checkpoint_is_a_plain_error_and_drops_no_ingredient(pool: Pool) -> None:
    order, store = order_for(pool), pool.worker.store
    path = f"{checkpoint_dir(pool.members[0].id)}/{WEIGHTS}"
    content = store.read(path)
    store.write(path, content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(RuntimeError, match="corrupt"):
            list(analyse(order, 0, pool.worker))
    finally:
        store.write(path, content)
