"""The failure policy: a table from what went wrong to what follows.

error      retries                     pause                why
refused    none                        -                    the user must mend it
lost       fleet.max_failures          1 s, doubling        machines die
preempted  unlimited                   none                 nobody's fault
hang       fleet.max_failures          1 s, doubling
oom        while the batch can halve   none                 the same again would fail again
storage    fleet.max_failures          2 s, doubling        stores recover
corrupt    fleet.max_failures          none                 an older checkpoint takes over
diverged   none                        -                    the same bytes would come again
error      once                        1 s                  twice the same is deterministic
"""

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.schedule.moment import Moment
from orchestrator.state.state import attempt_key
from workers.types import AnyEvent, BackoffOver, ErrorClass, Failed, GaveUp, RetryDecided

LONGEST_PAUSE_S = 60.0
UNLIMITED = 1_000_000


@dataclass(frozen=True)
class FailurePolicy:
    retries: int | None
    """None means fleet.max_failures."""
    pause_s: float = 0.0


POLICIES: dict[ErrorClass, FailurePolicy] = {
    "refused": FailurePolicy(retries=0),
    "lost": FailurePolicy(retries=None, pause_s=1.0),
    "preempted": FailurePolicy(retries=UNLIMITED),
    "hang": FailurePolicy(retries=None, pause_s=1.0),
    "oom": FailurePolicy(retries=UNLIMITED),
    "storage": FailurePolicy(retries=None, pause_s=2.0),
    "corrupt": FailurePolicy(retries=None),
    "diverged": FailurePolicy(retries=0),
    "error": FailurePolicy(retries=1, pause_s=1.0),
}


def retry_decisions(moment: Moment, now: float) -> Iterator[AnyEvent]:
    state = moment.state
    for order, failed in state.unresolved_failures.items():
        yield decide(moment, order, failed)
    for order, pause in state.backoff.items():
        if now >= pause.driver_time + pause.after_s:
            yield BackoffOver(order=order, run=pause.run, time=now)


def decide(moment: Moment, order: str, failed: Failed) -> AnyEvent:
    """Retry or give up, with the reason in words."""
    same = [f for f in moment.state.failures.get(order, ()) if _is_same(f, failed)]
    policy = POLICIES[failed.error]
    retries = moment.config.fleet.max_failures if policy.retries is None else policy.retries
    seen = f"{failed.error}: {failed.message}"
    if failed.error == "oom":
        return _shrink(moment, order, failed)
    if len(same) > retries:
        times = f" ({len(same)} times)" if len(same) > 1 else ""
        return GaveUp(order=order, run=failed.run, time=failed.time, reason=f"{seen}{times}")
    pause_s = min(policy.pause_s * 2 ** (len(same) - 1), LONGEST_PAUSE_S)
    limit = "" if retries == UNLIMITED else f" of {retries}"
    reason = f"retry {len(same)}{limit} after {seen}"
    return RetryDecided(
        order=order, run=failed.run, time=failed.time, after_s=pause_s, reason=reason
    )


def _is_same(earlier: Failed, failed: Failed) -> bool:
    """Another corrupt file is another failure: the one before was made again."""
    return earlier.error == failed.error and earlier.path == failed.path


def _shrink(moment: Moment, order: str, failed: Failed) -> AnyEvent:
    """Half the micro-batch, same optimizer step; only training can shrink."""
    micro_batch = _micro_batch(moment, order, failed)
    if micro_batch is None or micro_batch // 2 < 2:
        reason = f"oom: {failed.message}; the micro-batch cannot shrink below 2 images"
        return GaveUp(order=order, run=failed.run, time=failed.time, reason=reason)
    return RetryDecided(
        order=order,
        run=failed.run,
        time=failed.time,
        after_s=0.0,
        reason=f"out of memory with micro-batches of {micro_batch}; trying {micro_batch // 2}",
        micro_batch=micro_batch // 2,
    )


def _micro_batch(moment: Moment, order: str, failed: Failed) -> int | None:
    """The size that was too large. None: the order trains nothing."""
    smaller = moment.state.micro_batch.get(attempt_key(order, failed.run))
    if smaller is not None or not moment.is_resolved:
        return smaller
    stages = [stage for plan in moment.resolved.plans for stage in plan.stages]
    sizes = {run.id: run.train.batch_size for run in (*moment.expanded.runs, *stages)}
    return sizes.get(failed.run or "")
