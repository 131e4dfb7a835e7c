"""A simulated world: orders are performed without torch, on scores from a seeded table.

What is true here lasts: the store, the scores, the mishaps that will happen. Checkpoints are real
folders with real manifests where the driver looks for them, and an order that names one which is
no longer there fails the test.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.driver.ledger import Ledger
from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.state.reducers import fold
from orchestrator.state.state import State
from tests.simulator import experiment
from tests.simulator.experiment import COUNTS, facts
from workers.merging import recipe_driver
from workers.storage.layout import MANIFEST, SPLITS, WEIGHTS, checkpoint_dir
from workers.storage.manifest import FileInfo, Manifest
from workers.storage.store import Store
from workers.types import (
    SELECTION,
    Analysed,
    AnyEvent,
    AnyOrder,
    BaseReady,
    Blended,
    Checkpoint,
    Checkpointed,
    Compared,
    Diversity,
    DiversityOrder,
    EnsembleResult,
    ErrorClass,
    Evaluated,
    Failed,
    GeometryOrder,
    GradientOrder,
    GramResult,
    Interrupted,
    Measured,
    Mix,
    MixGradientResult,
    Preflighted,
    Retired,
    RunSpec,
    Score,
    Scored,
    Served,
    Started,
    Tasted,
    TasteOrder,
    TasteResult,
    Trained,
    TrainOrder,
    ema_id,
)

CONTENT = b"weights"


@dataclass(frozen=True)
class Mishap:
    """What goes wrong with an attempt, after so many of its events."""

    error: ErrorClass
    after: int = 0
    unheard: int = 0
    """Events that still happen, but of which word never comes."""
    checkpoint: str | None = None
    message: str = "simulated"


Mishaps = Callable[[AnyOrder, int], Mishap | None]
"""(order, attempt) -> what will go wrong with it."""


def no_mishap(order: AnyOrder, attempt: int) -> Mishap | None:
    return None


@dataclass
class World:
    expanded: ExpandedExperiment
    store: Store
    seed: int = 0
    mishaps: Mishaps = no_mishap
    early_stops: bool = True
    """Hopeless tastes end with a bound."""
    writes: bool = True
    """Checkpoints really are in the store."""
    deleted: set[str] = field(default_factory=set)
    """Ids of retired checkpoints."""
    live_recipes: dict[str, recipe_driver.LiveRecipe] = field(default_factory=dict)
    """Memory of the merge actor."""
    performed: list[tuple[str, int]] = field(default_factory=list)
    """(order, attempt) that began."""
    clock: float = 1_760_000_000.0

    @classmethod
    def at(
        cls, folder: Path, expanded: ExpandedExperiment | None = None, **options: Any
    ) -> "World":
        return cls(expanded or experiment.simulated(), Store(str(folder / "store")), **options)

    def ledger(self) -> Ledger:
        return Ledger(self.store)

    def state(self) -> State:
        return fold(self.ledger().replay())

    def now(self) -> float:
        return self.clock

    # Scores

    def score(self, mix: Mix) -> float:
        """Selection score of a mix; of few images, so that ties happen."""
        name = mix.single or mix.key
        return (_table(self.seed, name) % 21 + 10) / COUNTS[SELECTION]

    def _scored(self, name: str, split: str) -> Score:
        if split == SELECTION and not name.startswith("soup/"):
            top1 = self.score(Mix.mean([name]))
        else:
            top1 = _table(self.seed, f"{name} {split}") % 1000 / 1000
        return Score(count=COUNTS.get(split, 100), top1=top1, macro_f1=top1, nll=1 - top1, ece=0.1)

    def content(self, name: str) -> bytes:
        """The file of a checkpoint's weights."""
        return CONTENT

    # Performing

    def perform(
        self, order: AnyOrder, attempt: int, interrupted: Callable[[], str | None]
    ) -> Iterator[AnyEvent]:
        self._check_places(order)
        self.performed.append((order.id, attempt))
        stamp = {"order": order.id, "run": order.run_id, "attempt": attempt}
        for event in self._with_mishaps(order, attempt, interrupted):
            yield event.model_copy(update={**stamp, "time": self.clock})

    def _with_mishaps(
        self, order: AnyOrder, attempt: int, interrupted: Callable[[], str | None]
    ) -> Iterator[AnyEvent]:
        events: Iterator[AnyEvent] = getattr(self, f"_{order.kind}")(order, attempt)
        mishap = self.mishaps(order, attempt)
        for index, event in enumerate(events):
            if mishap is not None and index == mishap.after:
                for _ in zip(range(mishap.unheard), events, strict=False):
                    pass
                break
            yield event
            if event.kind == "checkpoint" and interrupted():
                yield Interrupted(reason=interrupted() or "")
                return
        if mishap is not None:
            yield Failed(error=mishap.error, message=mishap.message, checkpoint=mishap.checkpoint)

    def _check_places(self, order: AnyOrder) -> None:
        """Every checkpoint an order names is in the store; deleting again what is gone is fine."""
        for id_ in named(order) if order.kind != "retire" else ():
            assert id_ not in self.deleted, f"{order.id} names the deleted {id_}"
            if self.writes:
                manifest = f"{checkpoint_dir(id_)}/{MANIFEST}"
                assert self.store.exists(manifest), f"{order.id} names {id_}, not in the store"

    def _preflight(self, order: Any, attempt: int) -> Iterator[AnyEvent]:
        yield Started(warm=False, gap_s=None)
        splits = b"splits"
        self.store.write(SPLITS, splits)
        file = FileInfo(size=len(splits), sha256=hashlib.sha256(splits).hexdigest())
        yield Preflighted(facts=facts(self.expanded), files={SPLITS: file})

    def _base(self, order: Any, attempt: int) -> Iterator[AnyEvent]:
        yield Started(warm=False, gap_s=None)
        yield BaseReady(checkpoint=self._write(order.name, None, 0))

    def _train(self, order: TrainOrder, attempt: int) -> Iterator[AnyEvent]:
        run, stop_step = order.run, order.stop_step
        held_out = 0 if run.fold is None else facts(self.expanded).folds[run.fold]
        per_epoch = run.train.steps_per_epoch(COUNTS["train"] - held_out, 1)
        start = order.own_checkpoint
        done = 0 if start.name.startswith("base/") else start.step
        if start.name.startswith(("probe-", "trunk-")) and run.role != "member":
            done = start.step if start.name.startswith(run.id) else 0
        yield Started(warm=True, gap_s=0.01)
        step = done
        while step < stop_step and not self._is_enough(run, step, per_epoch):
            step = min((step // per_epoch + 1) * per_epoch, stop_step)
            yield self._evaluated(run, step, per_epoch)
            if run.train.model_ema_decay is not None:
                yield self._checkpointed(f"{ema_id(run.id)}/{step:08d}", attempt, step)
            yield self._checkpointed(f"{run.id}/{step:08d}", attempt, step)
        yield Trained(step=step, busy_s=1.0, early=step < stop_step)

    def _evaluated(self, run: RunSpec, step: int, per_epoch: int) -> Evaluated:
        name = f"{run.id}/{step:08d}"
        ema = run.train.model_ema_decay is not None
        return Evaluated(
            step=step,
            epoch=step // per_epoch,
            loss=1.0,
            lr=0.1,
            images_per_s=100.0,
            score=self._scored(name, SELECTION),
            ema=self._scored(f"{ema_id(run.id)}/{step:08d}", SELECTION) if ema else None,
            held_out=self._scored(name, f"fold:{run.fold}") if run.fold is not None else None,
        )

    def _checkpointed(self, name: str, attempt: int, step: int) -> Checkpointed:
        score = self._scored(name, SELECTION)
        return Checkpointed(checkpoint=self._write(name, attempt, step, score), score=score)

    def _is_enough(self, run: RunSpec, step: int, per_epoch: int) -> bool:
        """Patience, on the selection split or, of a fold, on what it holds out."""
        if run.train.patience is None or not step:
            return False
        points = [
            self._evaluated(run, at, per_epoch) for at in range(per_epoch, step + 1, per_epoch)
        ]
        scores = [(each.held_out or each.score).top1 for each in points]
        return len(scores) - 1 - scores.index(max(scores)) >= run.train.patience

    def _merge(self, order: Any, attempt: int) -> Iterator[AnyEvent]:
        yield from recipe_driver.merge(order, attempt, self)  # type: ignore[arg-type]

    def _taste(self, order: TasteOrder, attempt: int) -> Iterator[AnyEvent]:
        yield Started(warm=True, gap_s=0.01)
        yield Tasted(
            mix=order.mix.key, tasting=self.tasting(order), cohort=order.cohort.id, busy_s=1.0
        )

    def tasting(self, order: TasteOrder) -> TasteResult:
        """Complete, or for a hopeless one a bound somewhere between its score and the bar."""
        score = self.score(order.mix)
        bar = order.at_least
        if order.hits:
            hits = f"{_table(self.seed, order.mix.key):010x}"
            return TasteResult(score=score, at_most=score, samples=COUNTS[SELECTION], hits=hits)
        hopeless = bar is not None and (score <= bar if order.strict else score < bar)
        if not (self.early_stops and hopeless) or bar is None:
            return TasteResult(score=score, at_most=score, samples=COUNTS[SELECTION])
        steps = round((bar - score) * COUNTS[SELECTION])
        choices = range(steps + 1) if order.strict else range(steps)
        above = choices[_table(self.seed, order.id) % len(choices)]
        # Counted in images, as the real bound is: a sum of fractions may exceed the bar by an ulp.
        hits = round(score * COUNTS[SELECTION]) + above
        return TasteResult(score=None, at_most=hits / COUNTS[SELECTION], samples=8)

    def _geometry(self, order: GeometryOrder, attempt: int) -> Iterator[AnyEvent]:
        yield Started(warm=True, gap_s=0.01)
        num = len(order.question.names)
        rows = tuple(
            1.0 if i == j else self._number(f"{order.id} {i} {j}") / num
            for i in range(num)
            for j in range(i, num)
        )
        yield self._measured(order, GramResult(tensors={"w": rows}), 0)

    def _gradient(self, order: GradientOrder, attempt: int) -> Iterator[AnyEvent]:
        yield Started(warm=True, gap_s=0.01)
        question = order.question
        rows = tuple(
            tuple(
                self._number(f"{order.id} {prefix} {i}") for i in range(len(question.mix.weights))
            )
            for prefix in question.components
        )
        slope = MixGradientResult(loss=self._number(order.id), weights=rows, temperature=0.0)
        yield self._measured(order, slope, question.batch_size)

    def _measured(
        self,
        order: GeometryOrder | GradientOrder,
        answer: GramResult | MixGradientResult,
        samples: int,
    ) -> Measured:
        return Measured(
            key=order.question.key,
            cohort=order.cohort.family,
            answer=answer,
            samples=samples,
            busy_s=1.0,
        )

    def _number(self, name: str) -> float:
        return _table(self.seed, name) % 1000 / 1000

    def _blend(self, order: Any, attempt: int) -> Iterator[AnyEvent]:
        yield Started(warm=True, gap_s=0.01)
        yield Blended(checkpoint=self._write(order.name, None, 0), busy_s=1.0)

    def _diversity(self, order: DiversityOrder, attempt: int) -> Iterator[AnyEvent]:
        yield Started(warm=True, gap_s=0.01)
        yield Diversity(merge=order.merge, cosine=0.5, disagreement=0.1, busy_s=1.0)

    def _score(self, order: Any, attempt: int) -> Iterator[AnyEvent]:
        yield Started(warm=True, gap_s=0.01)
        name = order.name if order.kind == "point" else order.checkpoint.name
        scores = {split: self._scored(name, split) for split in order.splits}
        yield Scored(checkpoint=name, scores=scores, busy_s=1.0)

    _point = _score

    def _compare(self, order: Any, attempt: int) -> Iterator[AnyEvent]:
        yield Started(warm=True, gap_s=0.01)
        yield Compared(key=order.key, soups={}, ensembles=tuple(self._ensembles(order)))

    def _analyse(self, order: Any, attempt: int) -> Iterator[AnyEvent]:
        yield Started(warm=True, gap_s=0.01)
        yield Analysed(key=order.key, busy_s=1.0)

    def _ensembles(self, order: Any) -> Iterator[EnsembleResult]:
        """Without a score where a stacked classifier was fitted."""
        stacked = tuple(member for group in order.stacking for member in group)
        fitted_on = "out of fold" if order.folds else SELECTION
        for kind, members in (("soft_voting", order.members), ("stacking", stacked)):
            if not members:
                continue
            splits = [s for s in order.splits if kind != "stacking" or s != fitted_on]
            scores = {split: self._scored(f"soup/{kind}", split) for split in splits}
            about: dict[str, Any] = {}
            if kind == "stacking":
                about = {"groups": order.stacking, "fitted_on": fitted_on}
            yield EnsembleResult(
                id=kind, kind=kind, members=members, scores=scores, vs_best_single={}, **about
            )

    def _serve(self, order: Any, attempt: int) -> Iterator[AnyEvent]:
        yield Started(warm=True, gap_s=0.01)
        files = {WEIGHTS: order.soup.sha256} if self.writes else {}
        yield Served(soup=order.soup.name, files=files)

    def _retire(self, order: Any, attempt: int) -> Iterator[AnyEvent]:
        for checkpoint in order.checkpoints:
            self.deleted.add(checkpoint.id)
            self.store.delete(checkpoint_dir(checkpoint.id))
        yield Retired(checkpoints=tuple(checkpoint.id for checkpoint in order.checkpoints))

    def _write(
        self, name: str, attempt: int | None, step: int, score: Score | None = None
    ) -> Checkpoint:
        """A complete checkpoint, without waiting for the disk."""
        content = self.content(name)
        sha256 = hashlib.sha256(content).hexdigest()
        files = {WEIGHTS: FileInfo(size=len(content), sha256=sha256)}
        made = Manifest(name=name, attempt=attempt, step=step, score=score, files=files)
        if self.writes:
            assert self.store.local_root is not None
            folder = self.store.local_root / checkpoint_dir(made.checkpoint.id)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / WEIGHTS).write_bytes(content)
            (folder / MANIFEST).write_text(made.model_dump_json())
        return made.checkpoint


def _table(seed: int, name: str) -> int:
    return int(hashlib.sha256(f"{seed} {name}".encode()).hexdigest()[:8], 16)


def named(order: AnyOrder) -> set[str]:
    """Ids of all checkpoints that an order says where to find."""
    one = [getattr(order, key, None) for key in ("start", "source", "checkpoint", "soup")]
    many = [] if order.kind == "merge" else getattr(order, "ingredients", ())
    if order.kind == "diversity":
        many = (order.members.base, *order.members.ingredients)
    if order.kind == "train" and order.rejoin is not None:
        many = (*many, order.rejoin.own_checkpoint, *order.rejoin.peers)
    ids = {each.id for each in (*one, *many) if isinstance(each, Checkpoint)}
    if order.kind == "analyse":
        weighed = [(each.base, *each.ingredients) for each in order.weighed]
        ids |= {checkpoint.id for group in weighed for checkpoint in group}
        ids |= {each.predictions or each.id for each in order.subjects if each.kind != "ensemble"}
    if order.kind == "compare":
        ids |= {order.best_single, *order.members, *order.soups}
        ids |= {member for group in order.stacking for member in group}
    return ids | set(getattr(order, "hard_first", ()))
