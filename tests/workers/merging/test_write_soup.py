"""A soup in the store: deterministic, loadable by plain timm, and rebuilt to the same bytes."""

import hashlib
import json
from pathlib import Path

import pytest
import timm
import torch

from orchestrator.driver.lease import Lease
from orchestrator.driver.publish import Publisher
from tests.workers.small_soups import RESNET, VIT, Pool, make_pool
from workers.config.model import ModelConfig
from workers.data import eval_pixels, normalise
from workers.merging.taste import load_mix
from workers.merging.write_soup import SoupFile, blend_soup, rebuild
from workers.models.build import preprocessing
from workers.scoring.forward import logits
from workers.serving.export import _readme, serve
from workers.storage.store import CorruptFile
from workers.types import (
    AnyEvent,
    Blended,
    BlendOrder,
    Checkpoint,
    Decision,
    Mix,
    Served,
    ServeOrder,
    Soup,
)


@pytest.fixture(scope="module", params=[VIT, RESNET], ids=lambda spec: spec.name)
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(tmp_path_factory.mktemp("pool"), request.param)


def blended(
    pool: Pool, names: tuple[str, ...], soup: str = "soup/s", attempt: int = 0
) -> Checkpoint:
    decisions = (Decision(candidate=names[0], accepted=True, after=0.5, reason="first"),)
    made = Soup(mix=Mix.mean(names), score=0.5, decisions=decisions)
    order = BlendOrder(
        name=soup, recipe="greedy", cohort=pool.cohort, soup=made, ingredients=pool.members
    )
    (event,) = blend_soup(order, attempt, pool.worker)
    assert isinstance(event, Blended)
    return event.checkpoint


def files(pool: Pool, folder: str) -> dict[str, bytes]:
    store = pool.worker.store
    return {path.rpartition("/")[2]: store.read(path) for path in store.list(folder)}


def test_a_soup_is_a_checkpoint_with_the_files_of_the_contract(pool: Pool) -> None:
    soup = blended(pool, pool.names)
    written = files(pool, "soups/s")
    assert set(written) == {"model.safetensors", "config.json", "soup.json", "manifest.json"}
    assert soup.id == "soup/s"
    assert soup.sha256 == hashlib.sha256(written["model.safetensors"]).hexdigest()
    length = int.from_bytes(written["model.safetensors"][:8], "little")
    header = json.loads(written["model.safetensors"][8 : 8 + length])
    assert header["__metadata__"] == {"format": "pt"}
    made = json.loads(written["soup.json"])
    assert made["mix"] == Mix.mean(pool.names).model_dump(mode="json")
    assert [each["name"] for each in made["members"]] == list(pool.names)
    assert made["decisions"][0]["reason"] == "first"
    assert "attempt" not in written["soup.json"].decode()


def published(pool: Pool, soup: Checkpoint) -> AnyEvent:
    """Serve a soup as a worker and the driver do together; the event."""
    store = pool.worker.store
    (event,) = serve(ServeOrder(soup=soup), 0, pool.worker)
    lease = Lease(store, owner="test")
    lease.acquire()
    try:
        return Publisher(store, lease).result(event, {soup.name: soup})
    finally:
        lease.release()


def test_writing_a_soup_again_writes_the_same_bytes(pool: Pool) -> None:
    first = blended(pool, pool.names), files(pool, "soups/s")
    pool.worker.forget()
    assert (blended(pool, pool.names, attempt=3), files(pool, "soups/s")) == first


def test_a_soup_of_one_has_the_bytes_of_its_checkpoint(pool: Pool) -> None:
    assert blended(pool, pool.names[1:2], "soup/one").sha256 == pool.members[1].sha256


def test_plain_timm_loads_what_is_served_and_gives_the_same_answers(pool: Pool) -> None:
    soup = blended(pool, pool.names)
    event = published(pool, soup)
    assert isinstance(event, Served) and event.soup == "soup/s"
    assert set(files(pool, "soup")) == {
        "model.safetensors", "config.json", "soup.json", "README.md",
    }  # fmt: skip
    folder = Path(pool.worker.config.uri) / "soup"
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert plain.pretrained_cfg["label_names"] == list(pool.worker.images.classes)
    model = pool.worker.model(pool.cohort.model)
    load_mix(model, Mix.mean(pool.names), pool.cohort, pool.members, pool.worker)
    config = preprocessing(model, pool.worker.config.data)
    pixels = eval_pixels(pool.worker.images, "val", config)[:64]
    with torch.inference_mode():
        found = plain(normalise(pixels, config)).numpy()
    assert (found == logits(model, pixels, config, "cpu")).all()


def test_the_readme_beside_the_soup_says_how_to_load_it_and_what_is_in_it(pool: Pool) -> None:
    published(pool, blended(pool, pool.names))
    text = files(pool, "soup")["README.md"].decode()
    assert 'timm.create_model("local-dir:' in text
    assert f"| {pool.names[0]} | yes | first |" in text
    assert "Selection score (top1, higher is better): 0.5000" in text
    assert "Classes, in the order of the outputs: 0, 1, 2" in text
    assert "workers.model" not in text  # plain timm knows the architecture


def test_the_readme_of_an_architecture_of_ours_says_what_to_import_first(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, ModelConfig(name="test_resnet", head="se"))
    published(pool, blended(pool, pool.names))
    text = files(pool, "soup")["README.md"].decode()
    assert "import workers.model" in text and text.index("workers.model") < text.index(
        "import timm"
    )


@pytest.mark.parametrize("count", [1, 3])
def test_a_soup_made_again_from_its_file_has_the_same_hash(pool: Pool, count: int) -> None:
    soup = blended(pool, pool.names[:count])
    made = SoupFile.model_validate_json(files(pool, "soups/s")["soup.json"])
    pool.worker.forget()
    assert rebuild(made, pool.members, pool.worker) == soup.sha256


def test_a_lie_about_the_mix_or_a_changed_member_shows(pool: Pool) -> None:
    soup = blended(pool, pool.names)
    made = SoupFile.model_validate_json(files(pool, "soups/s")["soup.json"])
    lie = made.model_copy(update={"mix": Mix(weights=made.mix.weights, divisor=4.0)})
    assert rebuild(lie, pool.members, pool.worker) != soup.sha256
    changed = (pool.members[0].model_copy(update={"sha256": "0" * 64}), *pool.members[1:])
    with pytest.raises(CorruptFile, match=f"its member {pool.names[0]} has other weights now"):
        rebuild(made, changed, pool.worker)
    with pytest.raises(CorruptFile, match="is missing"):
        rebuild(made, pool.members[:2], pool.worker)


def test_names_of_classes_are_text_in_the_readme(pool: Pool) -> None:
    list(serve(ServeOrder(soup=blended(pool, pool.names)), 0, pool.worker))
    texts = files(pool, "soup")
    config = json.loads(texts["config.json"])
    soup = SoupFile.model_validate_json(texts["soup.json"])
    assert _readme(soup, config) == texts["README.md"].decode()
    names = ["<script>x</script>", "a|b", "\x1b[31m", *config["label_names"][3:]]
    text = _readme(soup, {**config, "label_names": names})
    assert r"&lt;script&gt;x&lt;/script&gt;, a\|b, \x1b\[31m, " in text
