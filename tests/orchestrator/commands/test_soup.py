"""The verb `soup`: what a fleet would have made of the same checkpoints, and every bad input."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from orchestrator import cli, config
from orchestrator.commands import run
from orchestrator.commands.run import DONE, Options
from orchestrator.commands.soup import SoupRequest, experiment_of, soup
from workers.errors import UserError
from workers.storage.store import Store

CLASSES = ("cat", "dog", "eel")


def _write_images(folder: Path, count: int, seed: int) -> None:
    """Noise with a tint by class: learnable, not easily."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 250, (16, 16, 3))
            pixels[..., label] += 5
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and checkpoints of two architectures that nobody trained for long."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("elsewhere")
    for seed, (split, count) in enumerate((("train", 16), ("data/val", 16), ("data/test", 10))):
        _write_images(folder / split, count, seed)
    for name in ("test_vit", "test_resnet"):
        torch.manual_seed(0)
        size = {"img_size": 32} if name == "test_vit" else {}
        base = timm.create_model(name, num_classes=3, **size).state_dict()
        torch.save(base, folder / f"{name}_base.pth")
        for i in range(3):
            torch.manual_seed(i)
            near = {
                key: t + 0.02 * torch.randn_like(t) if t.ndim > 1 else t for key, t in base.items()
            }
            prefixed = {f"module.{key}": tensor for key, tensor in near.items()}
            torch.save({"state_dict": prefixed}, folder / f"{name}_{i}.pth")
    return folder


def _wish(place: Path, out: Path, model: str = "test_vit", **changes: Any) -> SoupRequest:
    wish = SoupRequest(
        checkpoints=tuple(str(place / f"{model}_{i}.pth") for i in range(3)),
        model=model,
        data=str(place / "data"),
        recipe="greedy,uniform",
        out=str(out),
        image_size=32,
        metric="nll",
    )
    return replace(wish, **changes)


def test_the_soup_of_a_folder_of_checkpoints_is_served_to_plain_timm(
    place: Path, tmp_path: Path
) -> None:
    outcome = soup(_wish(place, tmp_path / "out"), plain=True)
    assert outcome.exit_code == DONE and outcome.results is not None
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == list(CLASSES)
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    known = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {each["recipe"] for each in known["soups"]} == {"greedy", "uniform"}
    assert all(set(each["vs_best_single"]) == {"val", "test"} for each in known["soups"])
    assert known["splits"]["train"]["count"] == 0
    assert all(run["status"] == "done" for run in known["runs"])
    for name in ("report.html", "soup.json", "README.md"):
        assert (tmp_path / "out" / name).is_file()
    uniform = next(each for each in known["soups"] if each["recipe"] == "uniform")
    found = load_file(tmp_path / "out" / "soups" / uniform["id"][5:] / "model.safetensors")
    members = [torch.load(place / f"test_vit_{i}.pth")["state_dict"] for i in range(3)]
    for key, tensor in found.items():
        mean = sum(member[f"module.{key}"].double() for member in members) / 3
        assert torch.equal(tensor, mean.to(tensor.dtype))


def test_the_same_command_again_has_nothing_to_do(place: Path, tmp_path: Path) -> None:
    wish = _wish(place, tmp_path / "out", recipe="uniform")
    assert soup(wish, plain=True).worked
    assert not soup(wish, plain=True).worked
    with pytest.raises(UserError, match=r"holds soups made otherwise \(.*give another folder"):
        soup(replace(wish, seed=1), plain=True)


FLEET = """
name: fleet
data: {image_size: 32, train: train, val: data/val, test: data/test}
model: {name: test_resnet}
train: {epochs: 1, batch_size: 8, lr: 0.003}
sweep: {seeds: 3}
merge: {mode: off}
soup: {recipes: [greedy], metric: nll}
ensemble: {soft_voting: false}
"""


def test_of_a_fleets_checkpoints_it_makes_the_fleets_soup(place: Path, tmp_path: Path) -> None:
    """BatchNorm recomputed on the same training images; the order of `nll` has no ties."""
    (tmp_path / "fleet.yaml").write_text(FLEET)
    overrides = [f"data.root={place}", f"storage={tmp_path}"]
    fleet = config.load(tmp_path / "fleet.yaml", overrides)
    run.run(fleet, Options(fleet="local", plain=True))
    files = sorted((tmp_path / "fleet").glob("runs/*/checkpoints/*/model.safetensors"))
    wish = _wish(place, tmp_path / "out", "test_resnet", recipe="greedy", image_size=None)
    wish = replace(wish, checkpoints=tuple(map(str, files)), train=str(place / "train"))
    soup(wish, plain=True)
    theirs, ours = (tmp_path / name / "soup" / "model.safetensors" for name in ("fleet", "out"))
    assert ours.read_bytes() == theirs.read_bytes()
    said = [json.loads((tmp_path / name / "soup" / "soup.json").read_text()) for name in
            ("fleet", "out")]  # fmt: skip
    assert said[0]["score"] == said[1]["score"] and len(said[0]["members"]) == len(
        said[1]["members"]
    )
    configs = [(tmp_path / name / "soup" / "config.json").read_text() for name in ("fleet", "out")]
    assert json.loads(configs[0])["pretrained_cfg"] == json.loads(configs[1])["pretrained_cfg"]


def test_class_folders_alone_are_halved_and_stratified(place: Path, tmp_path: Path) -> None:
    wish = _wish(place, tmp_path / "out", recipe="best", data=str(place / "data" / "val"))
    facts = soup(wish, plain=True).state.facts
    assert facts is not None
    halves = {name: split.class_counts for name, split in facts.splits.items() if split.count}
    assert halves == {"val": (8, 8, 8), "test": (8, 8, 8)}


def test_the_base_is_the_file_head_and_all(place: Path, tmp_path: Path) -> None:
    wish = _wish(place, tmp_path / "out", recipe="best", base=str(place / "test_vit_base.pth"))
    outcome = soup(wish, plain=True)
    (base,) = outcome.state.bases
    found = load_file(tmp_path / "out" / base / "model.safetensors")
    given = torch.load(place / "test_vit_base.pth")
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())


def _beside(folder: Path, labels: list[str], source: Path, **more: Any) -> str:
    """A folder as timm and soupfleet write them."""
    folder.mkdir()
    tensors = torch.load(source)["state_dict"]
    save_file(
        {k.removeprefix("module."): t for k, t in tensors.items()}, folder / "model.safetensors"
    )
    said = {"architecture": "test_vit", "label_names": labels, **more}
    (folder / "config.json").write_text(json.dumps(said))
    return str(folder)


def test_labels_size_and_pixels_come_from_the_configuration_beside(
    place: Path, tmp_path: Path
) -> None:
    more = {"model_args": {"img_size": 32}, "pretrained_cfg": {"input_size": [3, 32, 32],
            "crop_pct": 1.0, "url": "nowhere"}}  # fmt: skip
    labels = ["eel", "cat", "dog"]
    folders = [
        _beside(tmp_path / str(i), labels, place / f"test_vit_{i}.pth", **more) for i in range(2)
    ]
    wish = _wish(place, tmp_path / "out", image_size=None, recipe="uniform")
    soup(replace(wish, checkpoints=tuple(folders)), plain=True)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == labels
    assert model.pretrained_cfg["crop_pct"] == 1.0 and model.patch_embed.img_size == (32, 32)


# Refusals


def test_label_maps_that_differ_are_refused(place: Path, tmp_path: Path) -> None:
    orders = (["cat", "dog", "eel"], ["dog", "cat", "eel"])
    folders = [
        _beside(tmp_path / str(i), labels, place / f"test_vit_{i}.pth")
        for i, labels in enumerate(orders)
    ]
    with pytest.raises(UserError, match=r"1/model\.safetensors is dog, cat, eel, but cat, dog"):
        experiment_of(_wish(place, tmp_path / "out", checkpoints=tuple(folders)))
    one = (folders[0], str(place / "test_vit_1.pth"))
    with pytest.raises(UserError, match="--model is test_resnet, but .*--model test_vit"):
        experiment_of(_wish(place, tmp_path / "out", model="test_resnet", checkpoints=one))


def test_images_of_a_label_that_the_checkpoints_lack_are_refused(
    place: Path, tmp_path: Path
) -> None:
    folders = [
        _beside(tmp_path / str(i), ["cat", "dog", "fox"], place / f"test_vit_{i}.pth")
        for i in range(2)
    ]
    wish = _wish(place, tmp_path / "out", checkpoints=tuple(folders))
    with pytest.raises(UserError, match="class folder 'eel' that data.classes does not have"):
        soup(wish, plain=True)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"recipe": "greedi"}, "unknown recipe 'greedi'; did you mean greedy"),
    ({"recipe": "{greedy: {patient: 1}}"}, "has no option 'patient'"),
    ({"recipe": "model_stock"}, r"model_stock needs the weights.*--base FILE"),
    ({"recipe": "greedy,greedy"}, "greedy twice with the same options"),
    ({"data": "nowhere"}, "--data .*nowhere is not a folder"),
    ({"train": "nowhere"}, "--train .*nowhere is not a folder"),
    ({"model": "test_vitt"}, "timm has no model 'test_vitt'; did you mean test_vit"),
    ({"kwargs": "[1]"}, "--kwargs"),
    ({"metric": "top5"}, "metric"),
    ({"batchnorm": "off"}, "batchnorm"),
    ({"ema": True}, r"test_vit_0\.pth holds no averaged weights"),
]


@pytest.mark.parametrize(("changes", "said"), BAD, ids=lambda each: str(each)[:30])
def test_a_bad_wish_is_one_sentence_and_leaves_nothing(
    place: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as error:
        soup(replace(_wish(place, tmp_path / "out"), **changes), plain=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_bad_checkpoints_are_refused_before_anything_is_written(
    place: Path, tmp_path: Path
) -> None:
    first = str(place / "test_vit_0.pth")
    other = str(place / "test_resnet_0.pth")
    tensors = torch.load(place / "test_vit_1.pth")["state_dict"]
    tensors["module.head.bias"][0] = float("nan")
    torch.save({"state_dict": tensors}, tmp_path / "nan.pth")
    copy = tmp_path / "model_best.pth"
    copy.write_bytes(Path(first).read_bytes())
    bad = {
        (first, str(copy)): r"model_best\.pth are the same checkpoint; name one",
        (first,): "is one checkpoint, and nothing can be mixed",
        (first, str(place / "data" / ".." / "test_vit_0.pth")): "are the same checkpoint",
        (first, str(tmp_path / "none.pth")): "none.pth is not there",
        (first, other): r"checkpoint .*test_resnet_0\.pth has no tensor cls_token",
        (first, str(tmp_path / "nan.pth")): r"nan\.pth: 1 of 3 values of tensor head\.bias are not",
    }
    for checkpoints, said in bad.items():
        with pytest.raises(UserError, match=said):
            soup(_wish(place, tmp_path / "out", checkpoints=checkpoints), plain=True)
        assert not (tmp_path / "out").exists()


def test_a_split_that_is_not_there_or_empty_is_refused(place: Path, tmp_path: Path) -> None:
    half, empty = tmp_path / "half", tmp_path / "empty"
    _write_images(half / "val", 2, seed=9)
    for name in CLASSES:
        (empty / "val" / name).mkdir(parents=True)
    _write_images(empty / "test", 2, seed=9)
    bad = {half: r"has val/ without test/", empty: r"class folder .*val/cat holds no images"}
    for data, said in bad.items():
        with pytest.raises(UserError, match=said):
            soup(_wish(place, tmp_path / "out", data=str(data)), plain=True)
        assert not (tmp_path / "out").exists()


def test_batchnorm_needs_training_images_or_a_policy_without(place: Path, tmp_path: Path) -> None:
    wish = _wish(place, tmp_path / "out", model="test_resnet", recipe="uniform")
    with pytest.raises(UserError, match=r"test_resnet has BatchNorm.*--train DIR.*--batchnorm"):
        soup(wish, plain=True)
    outcome = soup(replace(wish, batchnorm="average"), plain=True)
    assert outcome.results is not None
    assert outcome.results["soups"][0]["batchnorm"] == "average"


def test_a_folder_with_other_files_is_not_touched(place: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files already; give a new folder"):
        soup(_wish(place, tmp_path), plain=True)
    assert Store(str(tmp_path)).list() == ["precious.txt"]


def test_the_command_prints_the_table(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(place / f"test_vit_{i}.pth") for i in range(3)]
    options = {"--model": "test_vit", "--data": str(place / "data"), "--image-size": "32",
               "--recipe": "uniform", "--out": str(tmp_path / "out")}  # fmt: skip
    words = [word for pair in options.items() for word in pair]
    monkeypatch.setattr("sys.argv", ["soupfleet", "soup", *files, *words, "--plain"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == DONE
    assert "soup uniform" in capsys.readouterr().out
