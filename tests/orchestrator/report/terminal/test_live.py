import io

from rich.console import Console

from orchestrator.report.terminal import status
from orchestrator.report.terminal.live import LiveView, PlainView, open_view
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from tests.orchestrator.report.scenario import DIVERGED, Scenario
from tests.simulator.experiment import simulated, then
from workers.heartbeat import Heartbeat


def _console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=160, height=60, force_terminal=terminal)


def _shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _follow(scenario: Scenario, console: Console) -> str:
    state = State()
    with open_view(None, console) as view:
        for event in scenario.events:
            state = then(state, [event])
            view.update(Moment(scenario.expanded, state), [event], [])
    return _shown(console)


def test_a_pipe_gets_lines_and_a_terminal_a_table() -> None:
    assert isinstance(open_view(None, _console(terminal=False)), PlainView)
    assert isinstance(open_view(None, _console(terminal=True)), LiveView)
    assert isinstance(open_view(True, _console(terminal=True)), PlainView)
    assert isinstance(open_view(False, _console(terminal=False)), LiveView)


def test_plain_lines_leave_out_checkpoints_and_tastes(finished: Scenario) -> None:
    text = _follow(finished, _console(terminal=False))
    run = finished.expanded.runs[3].id
    assert f"gave up on run {run}: diverged: {DIVERGED}" in text
    assert "attempt 2" in text and "retry 1 of 3 after lost" in text
    assert "round 1, soup so far: val accuracy 69.75 %, 2 of 2 ingredients" in text
    assert "epoch 3: val accuracy 74.25 %" in text and "serving soup/greedy-" in text
    assert "checkpoint" not in text and "taste-" not in text


def test_a_live_view_keeps_failures_and_shows_runs_and_soup(finished: Scenario) -> None:
    scenario = finished.until("evaluated", 8)
    console = _console(terminal=True)
    statuses = status.run_statuses(scenario.moment)
    running = next(run for run in statuses if run.status == "running")
    heartbeat = Heartbeat(slot=running.slot or "", run=running.id, loss=0.1234, images_per_s=512.0)
    with LiveView(console) as view:
        view.update(scenario.moment, scenario.events, [heartbeat], "Ray waits for 1 GPU")
    text = _shown(console)
    assert "0.1234" in text and "512" in text and "Ray waits for 1 GPU" in text
    assert "Soup so far: round" in text and "failed (lost): the worker of slot-1 died" in text
    assert "8 of 15 run-epochs" in text


def test_the_plain_view_prints_once_what_the_fleet_waits_for() -> None:
    console = _console(terminal=False)
    with PlainView(console) as view:
        for _ in range(3):
            view.update(Moment(simulated(), State()), [], [], "Ray waits for 1 GPU")
    assert _shown(console).count("Ray waits for 1 GPU") == 1


def test_the_estimated_time_follows_the_pace_so_far(finished: Scenario) -> None:
    scenario = finished.until("evaluated", 5)
    now = scenario.events[-1].time
    left = status.seconds_left(scenario.moment, now)
    last = max(event.time for event in finished.events if event.kind == "evaluated")
    assert left is not None and (last - now) / 3 < left < 3 * (last - now)
    assert status.seconds_left(Moment(scenario.expanded, State(opened_at=now)), now) is None
