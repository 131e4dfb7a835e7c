"""`run --extend`: what was added stays, whatever command comes next."""

import json
from pathlib import Path

import pytest

from tests.orchestrator.small_fleet import replayed, run_small
from workers.errors import UserError
from workers.storage.layout import FINISH
from workers.storage.store import Store

pytestmark = pytest.mark.slow

TWO = ("sweep.seeds=2", "soup.recipes=[best, uniform]", "train.epochs=1", "merge.mode=off")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, extended by a recipe, and then by a run and an ensemble."""
    folder = tmp_path_factory.mktemp("extended")
    run_small(folder, *TWO)
    run_small(folder, *TWO, "soup.recipes=[best, uniform, greedy]", extend=True)
    more = ("sweep.seeds=3", "ensemble.stacking=true")
    _, outcome = run_small(folder, *TWO, *more, extend=True)
    assert outcome.worked and outcome.exit_code == 0
    assert [recipe.label for recipe in outcome.moment.expanded.recipes][-1] == "greedy"
    return folder


def test_the_original_command_has_nothing_to_do_and_names_what_was_added(
    extended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, outcome = run_small(extended, *TWO)
    assert not outcome.worked and outcome.exit_code == 0
    text = capsys.readouterr().out
    added = "recipe `greedy`, 1 more run and ensemble.stacking (added with --extend)"
    assert f"small now has {added}" in text


def test_a_part_of_what_was_added_may_be_named(
    extended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, outcome = run_small(extended, *TWO, "sweep.seeds=3")
    assert not outcome.worked
    assert "small now has recipe `greedy` and ensemble.stacking (" in capsys.readouterr().out


def test_a_change_is_refused_without_what_was_added(extended: Path) -> None:
    with pytest.raises(UserError, match=r"config: train\.lr: 0\.003 -> 0\.5; undo") as refused:
        run_small(extended, *TWO, "train.lr=0.5")
    assert "soup" not in str(refused.value) and "sweep" not in str(refused.value)


def test_what_the_experiment_began_with_may_not_be_left_out(extended: Path) -> None:
    with pytest.raises(UserError, match=r"soup\.recipes"):
        run_small(extended, *TWO, "soup.recipes=[best]")
    with pytest.raises(UserError, match=r"sweep\.seeds: 3 -> 1"):
        run_small(extended, *TWO, "sweep.seeds=1", extend=True)


def test_all_commands_are_kept(extended: Path) -> None:
    facts = json.loads((extended / "runs" / "small" / "env.json").read_text())
    assert len(facts["commands"]) == 3 and facts["commands"][-1] == facts["command"]


@pytest.mark.parametrize("text", ['{"python": "3.1', "[1, 2]"])
def test_a_damaged_env_json_is_written_anew(tmp_path: Path, text: str) -> None:
    run_small(tmp_path, *TWO)
    file = tmp_path / "runs" / "small" / "env.json"
    file.write_text(text)
    run_small(tmp_path, *TWO, "soup.recipes=[best, uniform, greedy]", extend=True)
    assert len(json.loads(file.read_text())["commands"]) == 1


def test_an_experiment_that_was_told_to_finish_trains_the_runs_it_gains(tmp_path: Path) -> None:
    few = (*TWO, "train.epochs=3", "fleet.max_hours=1e-9")
    uri, first = run_small(tmp_path, *few, "sweep.seeds=1")
    assert not first.moment.state.runs and first.exit_code == 3
    _, grown = run_small(tmp_path, *few, "sweep.seeds=2", "fleet.max_hours=null", extend=True)
    assert grown.worked and grown.exit_code == 0
    assert {grown.moment.phase_of(run) for run in grown.moment.expanded.runs} == {"done"}
    assert not Store(uri).exists(FINISH)


def test_an_extension_by_another_architecture_is_checked_first(tmp_path: Path) -> None:
    few = (*TWO, "base.trunk_epochs=0", "sweep.seeds=1")
    uri, _ = run_small(tmp_path, *few)
    config = Path(uri, "config.yaml").read_text()
    with pytest.raises(UserError, match="test_nothing"):
        run_small(
            tmp_path, *few, "sweep.space={model.name: [test_resnet, test_nothing]}", extend=True
        )
    assert Path(uri, "config.yaml").read_text() == config
    _, same = run_small(tmp_path, *few)
    assert same.exit_code == 0
    models = "sweep.space={model.name: [test_resnet, test_vit]}"
    _, grown = run_small(tmp_path, *few, models, extend=True)
    assert grown.exit_code == 0 and len(grown.moment.resolved.cohorts) == 2
    expanded, state, _ = replayed(uri)
    assert len(expanded.runs) == 2 and state.preflight is not None


def test_other_images_are_no_extension(tmp_path: Path) -> None:
    few = (*TWO, "base.trunk_epochs=0", "sweep.seeds=1")
    run_small(tmp_path, *few)
    image = next((tmp_path / "images" / "cat").iterdir())
    image.unlink()
    models = "sweep.space={model.name: [test_resnet, test_vit]}"
    with pytest.raises(UserError, match="split .* are not those that the experiment began with"):
        run_small(tmp_path, *few, models, extend=True)
