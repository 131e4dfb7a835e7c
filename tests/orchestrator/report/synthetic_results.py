"""A small experiment, told event by event: the real schedule, and slots that only pretend to work.

Five runs of three epochs on two slots; the fourth diverges, the second loses a worker once. The
scores are made up so that greedy takes some candidates and refuses others.
"""

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import config, schedule
from orchestrator.experiment import sweep
from orchestrator.experiment.resolved import ExpandedExperiment, distinct_models
from orchestrator.schedule import final_merges, scoring
from orchestrator.schedule.moment import Moment
from orchestrator.state.reducers import CLOSING
from orchestrator.state.state import State
from tests.simulator.experiment import then
from workers import recipes
from workers.types import (
    Analysed,
    AnyEvent,
    AnyOrder,
    Asked,
    BaseReady,
    Blended,
    Checkpoint,
    Checkpointed,
    Compared,
    Delta,
    EnsembleResult,
    Evaluated,
    Failed,
    Finished,
    Mixed,
    ModelInfo,
    Opened,
    Ordered,
    Preflighted,
    PreflightResult,
    Retired,
    Score,
    Scored,
    Served,
    SplitInfo,
    Started,
    Tasted,
    TasteResult,
    Trained,
)

CONFIG = """
name: story
data: {source: digits, image_size: 32}
model: {name: test_resnet}
train: {epochs: 3, lr: 0.001}
sweep:
  runs:
    - {train: {lr: 5.0e-4}, seed: 0}
    - {train: {lr: 1.0e-3}, seed: 1}
    - {train: {lr: 1.0e-3, smoothing: 0.1}, seed: 2}
    - {train: {lr: 5.0e-2}, seed: 3}
    - {train: {lr: 7.0e-4, aa: rand-m5-mstd0.5}, seed: 4}
"""
COUNTS = {"train": 3000, "val": 400, "test": 600, "ood:sketch": 500}
BEGAN = 1_760_000_000.0
OFFSETS = {"train": 0.0, "val": 0.0, "test": -0.006, "ood:sketch": -0.17}
FINAL_VAL = (0.9175, 0.93, 0.925, 0.0, 0.9025)
STEPS = 94


def program(folder: Path, text: str = CONFIG) -> ExpandedExperiment:
    file = folder / "story.yaml"
    file.write_text(text)
    experiment = config.load(file, [f"storage={folder}/runs"])
    return ExpandedExperiment(experiment, sweep.expand(experiment), ranks=1)


def checkpoint(name: str, attempt: int | None = None, step: int = 0) -> Checkpoint:
    return Checkpoint(name=name, attempt=attempt, step=step, sha256="a" * 64, num_bytes=9_000_000)


def made_up(split: str, top1: float, nan: bool = False) -> Score:
    top1 = round((top1 + OFFSETS[split]) * COUNTS[split]) / COUNTS[split]
    macro_f1, nll = top1 - 0.004, 1.2 * (1.02 - top1)
    return Score(
        count=COUNTS[split], top1=top1, macro_f1=macro_f1, nll=None if nan else nll, ece=0.03
    )


@dataclass
class Story:
    """Plays driver and fleet; `state` is where it stands, `events` what has happened."""

    program: ExpandedExperiment
    wide: float = 0.0085
    """Half of every interval."""
    diverging: int = 3
    """Which run does."""
    state: State = field(default_factory=State)
    events: list[AnyEvent] = field(default_factory=list)
    now: float = BEGAN
    free: list[str] = field(default_factory=lambda: ["slot-0", "slot-1"])
    coming: list[tuple[float, int, AnyEvent]] = field(default_factory=list)
    counter: Iterator[int] = field(default_factory=itertools.count)

    def tell(self, until: str | None = None, nth: int = 1) -> "Story":
        """To the end, or until the nth event of a kind has happened."""
        self._happen(Opened(driver="host:1", fleet="local", slots=2, time=self.now))
        while not schedule.is_over(Moment(self.program, self.state)):
            for event in schedule.decisions(Moment(self.program, self.state), self.now):
                self._happen(event.model_copy(update={"time": self.now}))
            self._submit()
            if not self.coming:
                self.now += 1.0
                continue
            self.now, _, event = heapq.heappop(self.coming)
            self._happen(event)
            if until is not None and sum(e.kind == until for e in self.events) == nth:
                return self
        if until is None:
            wall_s = self.now - BEGAN
            self._happen(Finished(wall_s=wall_s, time=self.now))
        return self

    def _happen(self, event: AnyEvent) -> None:
        event = event.model_copy(update={"seq": len(self.events)})
        self.events.append(event)
        self.state = then(self.state, [event])
        if event.kind in CLOSING and event.slot is not None and event.slot != "merge":
            self.free.append(event.slot)

    def _submit(self) -> None:
        for order in schedule.due(Moment(self.program, self.state)):
            if order.place == "slot" and not self.free:
                continue
            slot = "merge" if order.place == "merge" else self.free.pop(0)
            self._perform(order, slot)

    def _perform(self, order: AnyOrder, slot: str) -> None:
        attempt = self.state.attempts.get(order.run_id or order.id, 0) + 1
        stamp: dict[str, Any] = {"order": order.id, "run": order.run_id, "attempt": attempt}
        what = {"what": order.kind, "due_since": self.now, "time": self.now}
        self._happen(Ordered(**what, **stamp))
        begun = Started(warm=True, gap_s=0.1, time=self.now + 0.2)
        time = self.now
        for seconds, event in [(0.2, begun), *self._events(order, attempt)]:
            time += seconds
            event = event.model_copy(update={**stamp, "slot": slot, "time": time})
            heapq.heappush(self.coming, (time, next(self.counter), event))

    def _events(self, order: AnyOrder, attempt: int) -> list[tuple[float, AnyEvent]]:
        """(seconds after the one before, event)"""
        known: dict[str, Any] = {
            "preflight": lambda: (1.0, Preflighted(facts=self._facts())),
            "base": lambda: (1.0, BaseReady(checkpoint=checkpoint(order.name))),
            "merge": lambda: (0.1, self._turn(order)),
            "taste": lambda: (1.0, self._tasted(order)),
            "blend": lambda: (0.5, Blended(checkpoint=checkpoint(order.name), busy_s=0.4)),
            "score": lambda: (1.5, self._scored(order)),
            "compare": lambda: (0.5, self._compared(order)),
            "analyse": lambda: (0.5, Analysed(key=order.key, busy_s=0.4)),
            "serve": lambda: (0.2, Served(soup=order.soup.name)),
            "retire": lambda: (0.1, Retired(checkpoints=tuple(c.id for c in order.checkpoints))),
        }
        if order.kind == "train":
            return list(self._train(order, attempt))
        return [known[order.kind]()]

    def _facts(self) -> PreflightResult:
        splits = {
            name: SplitInfo(count=count, fingerprint=name[0] * 64, class_counts=(count // 10,) * 10)
            for name, count in COUNTS.items()
        }
        facts = ModelInfo(
            num_parameters=470_000,
            model_bytes=1_900_000,
            checkpoint_bytes=5_700_000,
            has_batchnorm=True,
            preprocessing={"input_size": [3, 32, 32]},
        )
        return PreflightResult(
            classes=tuple(str(digit) for digit in range(10)),
            splits=splits,
            corrupt=("7/broken.png",),
            models=dict.fromkeys(distinct_models(self.program.runs), facts),
            warnings=("1 image does not decode and is left out: 7/broken.png",),
        )

    def _train(self, order: Any, attempt: int) -> Iterator[tuple[float, AnyEvent]]:
        index = [run.id for run in self.program.runs].index(order.run.id)
        if index == self.diverging:
            yield 2.0, Failed(error="diverged", message="the loss is not finite at step 17")
            return
        done = 0 if order.start.name.startswith("base/") else order.start.step // STEPS
        for epoch in range(done + 1, 4):
            if index == 1 and attempt == 1 and epoch == 2:
                yield 1.0, Failed(error="lost", message="the worker of slot-1 died")
                return
            reached = made_up("val", FINAL_VAL[index] - 0.11 * (3 - epoch) ** 1.6)
            step = epoch * STEPS
            yield (
                6.0 + index,
                Evaluated(
                    step=step,
                    epoch=epoch,
                    loss=0.9 / epoch,
                    lr=1e-3 / epoch,
                    images_per_s=480.0 + 10 * index,
                    score=reached,
                ),
            )
            made = checkpoint(f"{order.run.id}/{step:08d}", attempt, step)
            yield 0.3, Checkpointed(checkpoint=made, score=reached)
        yield 0.1, Trained(step=order.stop_step, busy_s=25.0)

    def _turn(self, order: Any) -> AnyEvent:
        """The recipe's next question, or its soup."""
        recipe = recipes.load_recipe(order.recipe, order.options)(order.ingredients, order.context)
        try:
            question = next(recipe)
            for answer in order.answers:
                question = recipe.send(answer)
        except StopIteration as ended:
            return Mixed(merge=order.merge, soup=ended.value)
        return Asked(merge=order.merge, question=question)

    def _mix_score(self, names: tuple[str, ...]) -> float:
        """The mean of the members, and a little more for each but the last run. A soup
        counts as its members."""
        runs = [run.id for run in self.program.runs]
        members = [name.partition("/")[0] for name in self._members(names)]
        at = [self.state.run(member).curve for member in members]
        mean = sum(curve[max(curve)].score.top1 for curve in at) / len(at)
        return mean + 0.0112 * (len(members) - 1) - 0.035 * (runs[4] in members)

    def _members(self, names: tuple[str, ...]) -> list[str]:
        """Of the soups among them, what they are made of."""
        made = {
            name: self.state.merges[final.id].soup
            for final, name in final_merges.written_soups(Moment(self.program, self.state))
        }
        soups = {name: soup.mix.names for name, soup in made.items() if soup is not None}
        return [member for name in names for member in soups.get(name, (name,))]

    def _tasted(self, order: Any) -> AnyEvent:
        top1 = made_up("val", self._mix_score(order.mix.names)).top1
        tasting = TasteResult(score=top1, at_most=top1, samples=COUNTS["val"])
        if order.at_least is not None and top1 < order.at_least - 0.02:
            tasting = TasteResult(
                score=None, at_most=round(order.at_least - 0.0025, 4), samples=160
            )
        return Tasted(mix=order.mix.key, tasting=tasting, cohort=order.cohort.id, busy_s=0.9)

    def _scored(self, order: Any) -> AnyEvent:
        name = order.checkpoint.name
        if name.startswith("soup/"):
            of_it = next(
                m for m in self.state.merges.values() if m.soup and m.opened.recipe in name
            )
            assert of_it.soup is not None
            top1 = self._mix_score(of_it.soup.mix.names) + 0.004
        else:
            curve = self.state.run(name.partition("/")[0]).curve
            top1 = curve[order.checkpoint.step].score.top1
        scores = {split: made_up(split, top1) for split in order.splits}
        return Scored(checkpoint=name, scores=scores, busy_s=1.4)

    def _compared(self, order: Any) -> AnyEvent:
        def deltas(scores: dict[str, Score]) -> dict[str, Delta]:
            gains = {split: scores[split].top1 - single[split].top1 for split in order.splits}
            return {
                split: Delta(metric="top1", delta=by, ci95=(by - self.wide, by + self.wide))
                for split, by in gains.items()
            }

        single = self._known(order.best_single)
        voting = {split: made_up(split, 0.944) for split in order.splits}
        ensemble = EnsembleResult(
            id="soft_voting",
            kind="soft_voting",
            members=order.members,
            scores=voting,
            vs_best_single=deltas(voting),
        )
        soups = {soup: deltas(self._known(soup)) for soup in order.soups}
        return Compared(key=order.key, soups=soups, ensembles=(ensemble,) if order.members else ())

    def _known(self, checkpoint_id: str) -> dict[str, Score]:
        """Scores of a checkpoint, by its id."""
        if checkpoint_id.startswith("soup/"):
            return dict(self.state.scores[checkpoint_id])
        return scoring.scores_of(self.state, checkpoint_id.rpartition("-")[0])
