"""A recipe in one file of the user's own, named in the configuration, run by the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.faults import tiny_experiment

RECIPE = '''
from collections.abc import Generator
from dataclasses import dataclass

from workers.types import Answer, Decision, Ingredient, Mix, Question, RecipeContext, Soup, Taste


@dataclass(frozen=True)
class Last:
    """The mean of the `count` worst ingredients, which no recipe of ours would take."""

    count: int = 3

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        ranked = sorted(ingredients, key=lambda i: (i.score, i.run, i.name))[: self.count]
        mix = Mix.mean([i.name for i in ranked])
        tasted = yield Taste(mixes=(mix,))
        chosen = [Decision(candidate=i.name, accepted=True, reason="so bad") for i in ranked]
        return Soup(mix=mix, score=tasted.scores[0], decisions=tuple(chosen))
'''

RECIPES = 'soup.recipes=[best, {"mypackage.last:Last": {count: 2}}]'


def test_a_recipe_in_one_file_gives_a_soup(tmp_path: Path) -> None:
    module = tmp_path / "path" / "mypackage" / "last.py"
    module.parent.mkdir(parents=True)
    module.write_text(RECIPE)
    command = [
        sys.executable,
        "-m",
        "orchestrator",
        "run",
        str(tiny_experiment.config_file(tmp_path)),
    ]
    command += [RECIPES, "sweep.seeds=3", "train.epochs=1", "merge.mode=off"]
    command += ["--fleet", "local", "--storage", str(tmp_path / "runs"), "--plain"]
    path = os.pathsep.join((str(tmp_path / "path"), str(tiny_experiment.ROOT)))
    env = tiny_experiment.environment() | {"PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=tiny_experiment.ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "soup Last" in done.stdout

    results = json.loads((tmp_path / "runs" / "tiny" / "results.json").read_text())
    (soup,) = [each for each in results["soups"] if each["recipe"] == "Last"]
    scores = {run["id"]: run["scores"]["val"]["top1"] for run in results["runs"]}
    members = [name.partition("/")[0] for name, _ in soup["mix"]["weights"]]
    assert len(members) == 2 and max(scores, key=scores.__getitem__) not in members
    assert {d["reason"] for d in soup["decisions"]} == {"so bad"} and "test" in soup["scores"]
