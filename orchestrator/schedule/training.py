"""Training: every run that can go on should be going on, from its newest checkpoint."""

from collections.abc import Iterator

from orchestrator.schedule.moment import Moment
from workers.types import AnyOrder, Checkpoint, Rejoin, RunSpec, TrainOrder


def train_orders(moment: Moment) -> Iterator[AnyOrder]:
    """Sync runs go from boundary to boundary: they have a rule of their own."""
    if moment.state.finish_reason is not None or moment.expanded.is_sync:
        return
    plan_of = moment.resolved.plan_of
    for run in moment.unfinished_runs:
        base = moment.state.bases.get(plan_of[run.id].final)
        if base is None or run.id in moment.in_flight:
            continue
        order = segment(moment, run, base)
        if order is not None:
            yield order


def segment(
    moment: Moment,
    run: RunSpec,
    start: Checkpoint,
    stop_step: int | None = None,
    rejoin: Rejoin | None = None,
) -> TrainOrder | None:
    """The rest of the run, or what is left of it up to `stop_step`, from its newest checkpoint;
    with `rejoin` from `start`. None: it is trained, or given up."""
    progress = moment.run(run.id)
    stop_step = stop_step or moment.resolved.num_steps[run.id]
    if progress.failed is not None or progress.ended_early or progress.trained_to >= stop_step:
        return None
    return TrainOrder(
        run=run,
        start=start if rejoin is not None else progress.last or start,
        stop_step=stop_step,
        rejoin=rejoin,
        micro_batch=moment.state.micro_batch.get(run.id),
    )
