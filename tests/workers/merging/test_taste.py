"""Tastes: their score, the bound at which they stop, and what stopping must not change."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from tests.workers.small_soups import RESNET, VIT, Pool, make_pool
from workers.data import eval_pixels
from workers.errors import UserError
from workers.merging.taste import hard_images_first, load_mix, taste
from workers.models.build import preprocessing
from workers.scoring.forward import EVAL_BATCH, logits
from workers.scoring.metrics import score
from workers.storage.layout import outcomes_path, predictions_path
from workers.storage.predictions import read_outcomes, read_predictions, write_predictions
from workers.storage.store import Store
from workers.types import Mix, Tasted, TasteOrder, TasteResult


@pytest.fixture(scope="module", params=[VIT, RESNET], ids=lambda spec: spec.name)
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(tmp_path_factory.mktemp("pool"), request.param)


def tasted(pool: Pool, mix: Mix, **bar: object) -> TasteResult:
    ids = tuple(each.id for each in pool.members)
    order = TasteOrder(
        cohort=pool.cohort, mix=mix, ingredients=pool.members, hard_images_first=ids, **bar
    )
    (event,) = taste(order, 0, pool.worker)
    assert isinstance(event, Tasted)
    assert event.mix == mix.key
    return event.tasting


def test_a_complete_taste_is_the_score_of_the_mixed_model(pool: Pool) -> None:
    mix = Mix.mean(pool.names)
    model = pool.worker.model(pool.cohort.model)
    load_mix(model, mix, pool.cohort, pool.members, pool.worker)
    config = preprocessing(model, pool.worker.config.data)
    found = logits(model, eval_pixels(pool.worker.images, "val", config), config, "cpu")
    expected = score(found, pool.worker.images.labels("val")).top1
    whole = score(found, pool.worker.images.labels("val"))
    assert tasted(pool, mix) == TasteResult(
        score=expected, at_most=expected, samples=150, nll=whole.nll
    )


def test_a_taste_with_hits_reports_every_image_and_never_stops_early(pool: Pool) -> None:
    mix = Mix.mean(pool.names)
    found = tasted(pool, mix, hits=True, at_least=1.0)
    assert found.samples == 150 and found.hits is not None and len(found.hits) == 2 * 19
    bits = [int(bit) for bit in bin(int("1" + found.hits, 16))[3:]]
    assert sum(bits[:150]) / 150 == found.score and not any(bits[150:])
    model = pool.worker.model(pool.cohort.model)
    config = preprocessing(model, pool.worker.config.data)
    seen = logits(model, eval_pixels(pool.worker.images, "val", config), config, "cpu")
    assert bits[:150] == (seen.argmax(1) == pool.worker.images.labels("val")).astype(int).tolist()
    assert tasted(pool, mix).hits is None


def test_tasting_one_checkpoint_gives_the_score_of_its_training(pool: Pool) -> None:
    for name, expected in zip(pool.names, pool.scores, strict=True):
        assert tasted(pool, Mix.mean([name])).score == expected


def test_a_stopped_taste_is_right_and_a_reachable_threshold_never_stops_one(pool: Pool) -> None:
    mix = Mix.mean(pool.names)
    full = tasted(pool, mix).score
    assert full is not None and 0.2 < full < 1
    for bar in np.linspace(0, 1, 11):
        for strict in (False, True):
            found = tasted(pool, mix, at_least=float(bar), strict=strict)
            reaches = full > bar if strict else full >= bar
            if reaches:
                assert found.score == full
            assert found.at_most >= full
            if found.score is None:
                assert found.samples < 150
                assert found.at_most <= bar if strict else found.at_most < bar
            else:
                assert found.score == found.at_most == full and found.samples == 150


def test_the_exact_score_as_threshold_is_reached_unless_strict(pool: Pool) -> None:
    mix = Mix.mean(pool.names)
    full = tasted(pool, mix).score
    assert full is not None
    assert tasted(pool, mix, at_least=full).score == full
    strict = tasted(pool, mix, at_least=full, strict=True)
    assert strict.score is None or strict.score == full


def test_an_unreachable_threshold_costs_at_most_the_images_that_prove_it(pool: Pool) -> None:
    found = tasted(pool, Mix.mean(pool.names), at_least=1.0)
    assert found.score is None
    assert found.samples == EVAL_BATCH, "the hard images come first, and settle it at once"
    assert tasted(pool, Mix.mean(pool.names), at_least=1.0, strict=True).samples == 0


def test_images_that_most_get_wrong_come_first_then_those_hardly_right(
    pool: Pool,
) -> None:
    ids = tuple(each.id for each in pool.members)
    queue = hard_images_first(ids, pool.worker)
    cached = [read_predictions(pool.worker.store, each, "val") for each in ids]
    wrong = sum((found.argmax(1) != labels).astype(int) for _, labels, found in cached)
    assert sorted(queue.tolist()) == list(range(150))
    sure = sum(softmax(x.astype(float), axis=1)[np.arange(150), y] for _, y, x in cached)
    keys = [(-int(wrong[i]), round(float(sure[i]), 9)) for i in queue]
    assert keys == sorted(keys) and keys[0][0] < 0


def test_hardness_reads_no_logits_and_old_stores_without_outcomes_give_the_same_order(
    pool: Pool, tmp_path: Path
) -> None:
    ids = tuple(each.id for each in pool.members)
    tables = [read_predictions(pool.worker.store, id_, "val") for id_ in ids]
    orders = []
    for name, path_of in (("new", predictions_path), ("old", outcomes_path)):
        store = Store(str(tmp_path / name))
        for id_, table in zip(ids, tables, strict=True):
            write_predictions(store, id_, "val", *table)
            store.delete(path_of(id_, "val"))
        hits = [read_outcomes(store, id_, "val") for id_ in ids]
        orders.append([column.tolist() for pair in hits for column in pair])
    assert orders[0] == orders[1]


def test_without_cached_predictions_images_keep_the_order_of_the_split(pool: Pool) -> None:
    assert hard_images_first((), pool.worker).tolist() == list(range(150))
    some = (pool.members[0].id, "nobody/00000001-0")
    assert hard_images_first(some, pool.worker).tolist() == list(range(150))


def test_the_other_metrics_look_at_every_image(pool: Pool) -> None:
    worker, mix = pool.worker, Mix.mean(pool.names)
    worker_config = worker.config
    try:
        for metric in ("macro_f1", "nll"):
            worker.config = worker_config.model_copy(update={"metric": metric})
            found = tasted(pool, mix, at_least=1e9)
            assert found.score == found.at_most and found.samples == 150
            assert found.score is not None and (found.score < 0) == (metric == "nll")
    finally:
        worker.config = worker_config


def test_a_taste_forgets_what_training_left_in_memory(pool: Pool) -> None:
    pool.worker.loaded_checkpoint_id = pool.members[0].id
    tasted(pool, Mix.mean(pool.names[:2]))
    assert pool.worker.loaded_checkpoint_id is None


def test_a_member_of_another_architecture_is_refused_by_name(pool: Pool) -> None:
    other = VIT if pool.cohort.model == RESNET else RESNET
    cohort = pool.cohort.model_copy(update={"model": other})
    order = TasteOrder(cohort=cohort, mix=Mix.mean(pool.names), ingredients=pool.members)
    with pytest.raises(UserError, match=f"checkpoint {pool.names[0]}"):
        list(taste(order, 0, pool.worker))
    pool.worker.forget()
