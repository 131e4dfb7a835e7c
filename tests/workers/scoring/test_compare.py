"""Comparisons: ensemble scores and paired intervals against plain references."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from tests.workers.small_soups import VIT, Pool, make_pool
from workers.scoring import ensembles
from workers.scoring.bootstrap import ImageOutcomes, paired_differences
from workers.scoring.compare import compare
from workers.scoring.metrics import score
from workers.scoring.stacking import fit
from workers.storage.predictions import read_predictions, write_predictions
from workers.storage.store import Store
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
    outcomes = {"two": ImageOutcomes.of(two, labels)}
    found = paired_differences(
        labels, ImageOutcomes.of(one, labels), outcomes, metric, [7, 8], 100
    )["two"]
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
    outcome = ImageOutcomes.of(logits, labels)
    found = paired_differences(labels, outcome, {"same": outcome}, "top1", [0])["same"]
    assert (found.delta, found.ci95, found.p) == (0.0, (0.0, 0.0), 1.0)


def test_the_interval_of_a_fair_coin_has_its_textbook_width() -> None:
    """200 images of 4,000 change sides each way, so the standard error of the difference is
    sqrt(400)/4000 = 0.005 and the interval about +-0.0098; the bootstrap of 2,000 resamples knows
    its ends to a few percent."""
    labels = np.zeros(4000, np.int64)
    one, two = np.tile([[1.0, 0.0]], (4000, 1)), np.tile([[1.0, 0.0]], (4000, 1))
    one[:200], two[200:400] = [0.0, 1.0], [0.0, 1.0]
    found = paired_differences(
        labels, ImageOutcomes.of(one, labels), {"two": ImageOutcomes.of(two, labels)}, "top1", [0]
    )["two"]
    assert found.delta == 0
    assert found.ci95 == pytest.approx((-0.0098, 0.0098), rel=0.1)
    assert found.p == 1


def test_only_accuracies_have_a_p_value() -> None:
    one, labels = made_up(0)
    two, _ = made_up(1)
    outcomes = {"two": ImageOutcomes.of(two, labels)}
    for metric in ("top1", "nll", "macro_f1"):
        found = paired_differences(
            labels, ImageOutcomes.of(one, labels), outcomes, metric, [0], 10
        )["two"]
        assert (found.p is not None) == (metric == "top1")


def test_a_metric_that_is_no_number_gives_no_difference() -> None:
    logits, labels = made_up(0)
    broken = logits.copy()
    broken[3, 1] = np.nan
    outcomes = {
        "broken": ImageOutcomes.of(broken, labels),
        "fine": ImageOutcomes.of(logits, labels),
    }
    assert set(paired_differences(labels, outcomes["fine"], outcomes, "nll", [0], 10)) == {"fine"}
    assert paired_differences(labels, outcomes["broken"], outcomes, "nll", [0], 10) == {}


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


def test_a_classifier_stacked_on_the_selection_split_is_not_reported_on_it(pool: Pool) -> None:
    ids, store = tuple(each.id for each in pool.members), pool.worker.store
    groups = tuple((each,) for each in ids)
    order = CompareOrder(
        best_single=ids[0], soups=(), members=(), splits=("val", "test"), stacking=groups
    )
    (event,) = compare(order, 0, pool.worker)
    assert isinstance(event, Compared)
    (stacked,) = event.ensembles
    assert (stacked.kind, stacked.fitted_on, stacked.members) == ("stacking", "val", ids)
    assert set(stacked.scores) == set(stacked.vs_best_single) == {"test"}
    ensemble, stacker = ensembles.read_ensemble(store, "stacking")
    assert ensemble == stacked and stacker is not None
    columns = {s: [read_predictions(store, id, s)[2] for id in ids] for s in order.splits}
    labels = {split: read_predictions(store, ids[0], split)[1] for split in order.splits}
    again = fit(columns["val"], labels["val"])
    assert stacked.scores["test"] == score(again(columns["test"]), labels["test"])


def test_out_of_fold_predictions_fit_the_classifier_and_folds_share_a_column(pool: Pool) -> None:
    """Four members: two settings, each trained on two folds."""
    store, rng = pool.worker.store, np.random.default_rng(0)
    num_classes = read_predictions(store, pool.members[0].id, "test")[2].shape[1]
    test_keys, test_labels, _ = read_predictions(store, pool.members[0].id, "test")
    held_out = {
        fold: ([f"{i:02d}{fold}" for i in range(40)], rng.integers(0, num_classes, 40))
        for fold in (0, 1)
    }
    rows: dict[tuple[str, str], np.ndarray] = {}

    def predict(member: str, split: str, keys: list[str], labels: np.ndarray) -> None:
        rows[member, split] = rng.normal(size=(len(keys), num_classes)).astype(np.float32)
        write_predictions(store, member, split, keys, labels, rows[member, split])

    groups = (("a0/1-0", "a1/1-0"), ("b0/1-0", "b1/1-0"))
    folds = {member: k for group in groups for k, member in enumerate(group)}
    for member, fold in folds.items():
        predict(member, f"fold:{fold}", *held_out[fold])
        predict(member, "test", test_keys, test_labels)
    stacker = ensembles.fit_stacker(store, groups, folds)
    keys = np.array(held_out[0][0] + held_out[1][0])
    order = np.argsort(keys)
    labels = np.concatenate([held_out[0][1], held_out[1][1]])[order]
    columns = [np.concatenate([rows[m, f"fold:{folds[m]}"] for m in g])[order] for g in groups]
    expected = fit(columns, labels)
    np.testing.assert_array_equal(stacker.weight, expected.weight)
    _, _, found = ensembles.stack(store, stacker, groups, "test")
    means = [(rows[a, "test"].astype(np.float64) + rows[b, "test"]) / 2 for a, b in groups]
    np.testing.assert_allclose(found, expected(means), atol=1e-9)


def test_the_best_single_model_may_be_a_soup_too_and_members_may_be_absent(pool: Pool) -> None:
    best = pool.members[0].id
    order = CompareOrder(best_single=best, soups=(best,), members=(), splits=("test",))
    (event,) = compare(order, 0, pool.worker)
    assert isinstance(event, Compared)
    assert event.soups[best]["test"].delta == 0 and event.ensembles == ()


def test_every_resample_is_a_sign_of_life() -> None:
    logits, labels = made_up(0)
    outcome, touched = ImageOutcomes.of(logits, labels), []
    paired_differences(
        labels, outcome, {"two": outcome}, "top1", [1], 50, touch=lambda: touched.append(None)
    )
    assert len(touched) == 50


def test_soft_voting_reports_every_member(pool: Pool) -> None:
    members = tuple(member.id for member in pool.members)
    store = Store(pool.worker.store.uri)
    read: list[None] = []
    store.on_bytes = lambda: read.append(None)
    ensembles.soft_vote(store, members, "val")
    assert len(read) >= len(members) > 1
