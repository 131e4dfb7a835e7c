"""The verb `soup`: the soup of a fleet with the same checkpoints, and refusals of bad input."""

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
from orchestrator.commands.soup import SoupRequest, experiment_of, make_soups
from workers.errors import UserError
from workers.storage.store import Store

CLASSES = ("cat", "dog", "eel")


def _write_images(folder: Path, count: int, seed: int) -> None:
    """Noise with a tint by class, which is hard to learn."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 250, (16, 16, 3))
            pixels[..., label] += 5
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and nearby random checkpoints of two architectures."""
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


def _request(place: Path, out: Path, model: str = "test_vit", **changes: Any) -> SoupRequest:
    request = SoupRequest(
        checkpoints=tuple(str(place / f"{model}_{i}.pth") for i in range(3)),
        model=model,
        data=str(place / "data"),
        recipe="greedy,uniform",
        out=str(out),
        image_size=32,
        metric="nll",
    )
    return replace(request, **changes)


def test_the_soup_of_a_folder_of_checkpoints_is_served_to_plain_timm(
    place: Path, tmp_path: Path
) -> None:
    outcome = make_soups(_request(place, tmp_path / "out"), plain=True)
    assert outcome.exit_code == DONE and outcome.results is not None
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == list(CLASSES)
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {soup["recipe"] for soup in results["soups"]} == {"greedy", "uniform"}
    assert all(set(soup["vs_best_single"]) == {"val", "test"} for soup in results["soups"])
    assert results["splits"]["train"]["count"] == 0
    assert all(run["status"] == "done" for run in results["runs"])
    for name in ("report.html", "soup.json", "README.md"):
        assert (tmp_path / "out" / name).is_file()
    uniform = next(soup for soup in results["soups"] if soup["recipe"] == "uniform")
    served = load_file(tmp_path / "out" / "soups" / uniform["id"][5:] / "model.safetensors")
    members = [torch.load(place / f"test_vit_{i}.pth")["state_dict"] for i in range(3)]
    for key, tensor in served.items():
        mean = sum(member[f"module.{key}"].double() for member in members) / 3
        assert torch.equal(tensor, mean.to(tensor.dtype))


def test_the_same_command_again_has_nothing_to_do(place: Path, tmp_path: Path) -> None:
    request = _request(place, tmp_path / "out", recipe="uniform")
    assert make_soups(request, plain=True).worked
    assert not make_soups(request, plain=True).worked
    with pytest.raises(UserError, match=r"--out .* soups of another command \(seed: 0 -> 1\)"):
        make_soups(replace(request, seed=1), plain=True)


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


def test_a_fleets_checkpoints_give_the_fleets_soup(place: Path, tmp_path: Path) -> None:
    """BatchNorm recomputed on the same training images; the order of `nll` has no ties."""
    (tmp_path / "fleet.yaml").write_text(FLEET)
    overrides = [f"data.root={place}", f"storage={tmp_path}"]
    fleet = config.load(tmp_path / "fleet.yaml", overrides)
    run.run_experiment(fleet, Options(fleet="local", plain=True))
    files = sorted((tmp_path / "fleet").glob("runs/*/checkpoints/*/model.safetensors"))
    request = _request(place, tmp_path / "out", "test_resnet", recipe="greedy", image_size=None)
    request = replace(request, checkpoints=tuple(map(str, files)), train=str(place / "train"))
    make_soups(request, plain=True)
    theirs, ours = (tmp_path / name / "soup" / "model.safetensors" for name in ("fleet", "out"))
    assert ours.read_bytes() == theirs.read_bytes()
    soups = [json.loads((tmp_path / name / "soup" / "soup.json").read_text()) for name in
             ("fleet", "out")]  # fmt: skip
    assert soups[0]["score"] == soups[1]["score"]
    assert len(soups[0]["members"]) == len(soups[1]["members"])
    configs = [(tmp_path / name / "soup" / "config.json").read_text() for name in ("fleet", "out")]
    assert json.loads(configs[0])["pretrained_cfg"] == json.loads(configs[1])["pretrained_cfg"]


def test_class_folders_alone_are_halved_and_stratified(place: Path, tmp_path: Path) -> None:
    request = _request(place, tmp_path / "out", recipe="best", data=str(place / "data" / "val"))
    facts = make_soups(request, plain=True).moment.state.preflight
    assert facts is not None
    halves = {name: split.class_counts for name, split in facts.splits.items() if split.count}
    assert halves == {"val": (8, 8, 8), "test": (8, 8, 8)}


def test_the_base_is_the_file_head_and_all(place: Path, tmp_path: Path) -> None:
    request = _request(
        place, tmp_path / "out", recipe="best", base=str(place / "test_vit_base.pth")
    )
    outcome = make_soups(request, plain=True)
    (base,) = outcome.moment.state.bases
    found = load_file(tmp_path / "out" / base / "model.safetensors")
    given = torch.load(place / "test_vit_base.pth")
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())


def _write_model_folder(folder: Path, labels: list[str], source: Path, **more: Any) -> str:
    """A folder as timm and soupfleet write them."""
    folder.mkdir()
    tensors = torch.load(source)["state_dict"]
    save_file(
        {k.removeprefix("module."): t for k, t in tensors.items()}, folder / "model.safetensors"
    )
    config = {"architecture": "test_vit", "label_names": labels, **more}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_labels_size_and_preprocessing_come_from_the_config_json_beside(
    place: Path, tmp_path: Path
) -> None:
    more = {"model_args": {"img_size": 32}, "pretrained_cfg": {"input_size": [3, 32, 32],
            "crop_pct": 1.0, "url": "nowhere"}}  # fmt: skip
    labels = ["eel", "cat", "dog"]
    folders = [
        _write_model_folder(tmp_path / str(i), labels, place / f"test_vit_{i}.pth", **more)
        for i in range(2)
    ]
    request = _request(place, tmp_path / "out", image_size=None, recipe="uniform")
    make_soups(replace(request, checkpoints=tuple(folders)), plain=True)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == labels
    assert model.pretrained_cfg["crop_pct"] == 1.0 and model.patch_embed.img_size == (32, 32)


# Refusals


def test_label_maps_that_differ_are_refused(place: Path, tmp_path: Path) -> None:
    orders = (["cat", "dog", "eel"], ["dog", "cat", "eel"])
    folders = [
        _write_model_folder(tmp_path / str(i), labels, place / f"test_vit_{i}.pth")
        for i, labels in enumerate(orders)
    ]
    with pytest.raises(UserError, match=r"1/model\.safetensors is dog, cat, eel, but cat, dog"):
        experiment_of(_request(place, tmp_path / "out", checkpoints=tuple(folders)))
    one = (folders[0], str(place / "test_vit_1.pth"))
    with pytest.raises(UserError, match="--model is test_resnet, but .*--model test_vit"):
        experiment_of(_request(place, tmp_path / "out", model="test_resnet", checkpoints=one))


def test_images_of_a_label_that_the_checkpoints_lack_are_refused(
    place: Path, tmp_path: Path
) -> None:
    folders = [
        _write_model_folder(tmp_path / str(i), ["cat", "dog", "fox"], place / f"test_vit_{i}.pth")
        for i in range(2)
    ]
    request = _request(place, tmp_path / "out", checkpoints=tuple(folders))
    with pytest.raises(UserError, match="class folder 'eel' that data.classes does not have"):
        make_soups(request, plain=True)


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


@pytest.mark.parametrize(("changes", "seen"), BAD, ids=lambda value: str(value)[:30])
def test_a_bad_request_is_one_sentence_and_leaves_nothing(
    place: Path, tmp_path: Path, changes: dict[str, Any], seen: str
) -> None:
    with pytest.raises(UserError, match=seen) as error:
        make_soups(replace(_request(place, tmp_path / "out"), **changes), plain=True)
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
        (first,): r"test_vit_0\.pth is the only checkpoint; .*two",
        (first, str(place / "data" / ".." / "test_vit_0.pth")): "are the same checkpoint",
        (first, str(tmp_path / "none.pth")): r"none\.pth does not exist",
        (first, other): r"checkpoint .*test_resnet_0\.pth has no tensor cls_token",
        (first, str(tmp_path / "nan.pth")): r"nan\.pth: 1 of 3 values of tensor .*head\.bias",
    }
    for checkpoints, seen in bad.items():
        with pytest.raises(UserError, match=seen):
            make_soups(_request(place, tmp_path / "out", checkpoints=checkpoints), plain=True)
        assert not (tmp_path / "out").exists()


def test_a_missing_or_empty_split_is_refused(place: Path, tmp_path: Path) -> None:
    half, empty = tmp_path / "half", tmp_path / "empty"
    _write_images(half / "val", 2, seed=9)
    for name in CLASSES:
        (empty / "val" / name).mkdir(parents=True)
    _write_images(empty / "test", 2, seed=9)
    bad = {half: r"has val/ without test/", empty: r"class folder .*val/cat holds no images"}
    for data, seen in bad.items():
        with pytest.raises(UserError, match=seen):
            make_soups(_request(place, tmp_path / "out", data=str(data)), plain=True)
        assert not (tmp_path / "out").exists()


def test_batchnorm_needs_training_images_or_a_policy_without(place: Path, tmp_path: Path) -> None:
    request = _request(place, tmp_path / "out", model="test_resnet", recipe="uniform")
    with pytest.raises(UserError, match=r"test_resnet has BatchNorm.*--train DIR.*--batchnorm"):
        make_soups(request, plain=True)
    outcome = make_soups(replace(request, batchnorm="average"), plain=True)
    assert outcome.results is not None
    assert outcome.results["soups"][0]["batchnorm"] == "average"


def test_a_folder_with_other_files_is_not_touched(place: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="--out .* contains other files"):
        make_soups(_request(place, tmp_path), plain=True)
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
