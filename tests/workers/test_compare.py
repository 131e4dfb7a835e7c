"""Comparisons: ensemble scores and paired intervals against plain references."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from tests.workers.small_soups import VIT, Pool, make_pool
from workers.compare import Outcome, compare, differences
from workers.evaluate import read_predictions, write_predictions
from workers.metrics import score
from workers.types import Compared, CompareOrder


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(tmp_path_factory.mktemp("pool"), VIT)


def made_up(seed: int, n: int = 200, num_classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, n)
    logits = rng.normal(size=(n, num_classes))
    logits[np.arange(n), labels] += 1.0
    return logits.astype(np.float32), labels


def reference(labels: np.ndarray, logits: np.ndarray, metric: str) -> float:
    if metric == "macro_f1":
        return float(f1_score(labels, logits.argmax(1), average="macro"))
    if metric == "top1":
        return float((logits.argmax(1) == labels).mean())
    wide = logits.astype(np.float64)
    return float(-(wide[np.arange(len(labels)), labels] - np.log(np.exp(wide).sum(1))).mean())


@pytest.mark.parametrize("metric", ["top1", "macro_f1", "nll"])
def test_differences_and_intervals_equal_a_plain_paired_bootstrap(metric: str) -> None:
    """The reference indexes the arrays with every resample and calls the metric on the result."""
    one, labels = made_up(0)
    two = one + np.random.default_rng(1).normal(size=one.shape).astype(np.float32)
    outcomes = {"two": Outcome.of(two, labels)}
    found = differences(labels, Outcome.of(one, labels), outcomes, metric, [7, 8], 100)["two"]
    rng = np.random.default_rng([7, 8])
    drawn = []
    for _ in range(100):
        rows = rng.integers(0, len(labels), len(labels))
        values = [reference(labels[rows], logits[rows], metric) for logits in (two, one)]
        drawn.append(values[0] - values[1])
    expected = reference(labels, two, metric) - reference(labels, one, metric)
    assert found.delta == pytest.approx(expected)
    assert found.ci95 == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))


def test_a_model_does_not_differ_from_itself() -> None:
    logits, labels = made_up(0)
    outcome = Outcome.of(logits, labels)
    found = differences(labels, outcome, {"same": outcome}, "top1", [0])["same"]
    assert (found.delta, found.ci95) == (0.0, (0.0, 0.0))


def test_the_interval_of_a_fair_coin_has_its_textbook_width() -> None:
    """200 images of 4,000 change sides each way, so the standard error of the difference is
    sqrt(400)/4000 = 0.005 and the interval about +-0.0098; the bootstrap of 2,000 resamples knows
    its ends to a few percent."""
    labels = np.zeros(4000, np.int64)
    one, two = np.tile([[1.0, 0.0]], (4000, 1)), np.tile([[1.0, 0.0]], (4000, 1))
    one[:200], two[200:400] = [0.0, 1.0], [0.0, 1.0]
    found = differences(
        labels, Outcome.of(one, labels), {"two": Outcome.of(two, labels)}, "top1", [0]
    )["two"]
    assert found.delta == 0
    assert found.ci95 == pytest.approx((-0.0098, 0.0098), rel=0.1)


def test_a_metric_that_is_no_number_gives_no_difference() -> None:
    logits, labels = made_up(0)
    broken = logits.copy()
    broken[3, 1] = np.nan
    outcomes = {"broken": Outcome.of(broken, labels), "fine": Outcome.of(logits, labels)}
    assert set(differences(labels, outcomes["fine"], outcomes, "nll", [0], 10)) == {"fine"}
    assert differences(labels, outcomes["broken"], outcomes, "nll", [0], 10) == {}


def test_a_comparison_reads_predictions_and_writes_the_ensemble(pool: Pool) -> None:
    ids = tuple(each.id for each in pool.members)
    store = pool.worker.store
    for split in ("val", "test"):
        keys, labels, logits = read_predictions(store, ids[1], split)
        write_predictions(store, "soup/s", split, keys, labels, logits)
    order = CompareOrder(best_single=ids[0], soups=("soup/s",), members=ids, splits=("val", "test"))
    (event,) = compare(order, 0, pool.worker)
    assert isinstance(event, Compared)
    (voting,) = event.ensembles
    for split in order.splits:
        tables = [read_predictions(store, each, split) for each in ids]
        labels = tables[0][1]
        mean = sum(logits.astype(np.float64) for _, _, logits in tables) / 3
        assert voting.scores[split] == score(mean, labels)
        one, two = (score(tables[i][2], labels).top1 for i in (0, 1))
        assert event.soups["soup/s"][split].delta == pytest.approx(two - one)
        low, high = event.soups["soup/s"][split].ci95
        assert low <= two - one <= high
        assert voting.vs_best_single[split].delta == pytest.approx(voting.scores[split].top1 - one)
    saved = json.loads(store.read("ensembles/soft_voting/ensemble.json"))
    assert saved["members"] == list(ids)
    (again,) = compare(order, 1, pool.worker)
    assert again.model_copy(update={"time": event.time}) == event


def test_the_best_single_model_may_be_a_soup_too_and_members_may_be_absent(pool: Pool) -> None:
    best = pool.members[0].id
    order = CompareOrder(best_single=best, soups=(best,), members=(), splits=("test",))
    (event,) = compare(order, 0, pool.worker)
    assert isinstance(event, Compared)
    assert event.soups[best]["test"].delta == 0 and event.ensembles == ()
