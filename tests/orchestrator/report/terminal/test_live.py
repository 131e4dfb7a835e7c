import io
from pathlib import Path

from rich.console import Console

from orchestrator.report.terminal import status
from orchestrator.report.terminal.live import LiveView, PlainView, open_view
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from tests.orchestrator.report.synthetic_results import BEGAN, Story, program
from tests.simulator.experiment import then
from workers.heartbeat import Heartbeat


def _console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=160, height=60, force_terminal=terminal)


def _shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _told_to(console: Console, story: Story, plain: bool | None) -> str:
    state = State()
    with open_view(plain, console) as view:
        for event in story.events:
            state = then(state, [event])
            view.update(Moment(story.program, state), [event], [])
    return _shown(console)


def test_a_pipe_gets_lines_and_a_terminal_a_table() -> None:
    assert isinstance(open_view(None, _console(terminal=False)), PlainView)
    assert isinstance(open_view(None, _console(terminal=True)), LiveView)
    assert isinstance(open_view(True, _console(terminal=True)), PlainView)
    assert isinstance(open_view(False, _console(terminal=False)), LiveView)


def test_plain_lines_tell_what_matters_and_nothing_else(tmp_path: Path) -> None:
    story = Story(program(tmp_path)).tell()
    lines = _told_to(_console(terminal=False), story, plain=None).splitlines()
    bad = story.program.runs[3].id
    assert f"0:00:38  gave up on run {bad}: diverged: the loss is not finite at step 17" in lines
    text = "\n".join(lines)
    assert "attempt 2" in text and "retry 1 of 3 after lost" in text
    assert "round 1, soup so far: val accuracy 60.25 %, 2 of 2 ingredients" in text
    assert "epoch 3: val accuracy 93.00 %" in text and "serving soup/greedy-" in text
    assert "checkpoint" not in text and "taste-" not in text


def test_a_live_view_keeps_failures_and_shows_runs_and_soup(tmp_path: Path) -> None:
    story = Story(program(tmp_path)).tell("evaluated", 5)
    console = _console(terminal=True)
    running = next(
        r for r in status.run_statuses(Moment(story.program, story.state)) if r.status == "running"
    )
    pulse = Heartbeat(slot=running.slot or "", run=running.id, loss=0.1234, images_per_s=512.0)
    with LiveView(console) as view:
        view.update(
            Moment(story.program, story.state), story.events, [pulse], "Ray waits for 1 GPU"
        )
    text = _shown(console)
    assert "0.1234" in text and "512" in text and "Ray waits for 1 GPU" in text
    assert "Soup so far: round" in text and "failed (lost): the worker of slot-1 died" in text
    assert "5 of 15 run-epochs" in text


def test_plain_says_once_what_the_fleet_waits_for(tmp_path: Path) -> None:
    console = _console(terminal=False)
    with PlainView(console) as view:
        for _ in range(3):
            view.update(program(tmp_path), State(), [], [], "Ray waits for 1 GPU")
    assert _shown(console).count("Ray waits for 1 GPU") == 1


def test_time_left_follows_the_pace_so_far(tmp_path: Path) -> None:
    story = Story(program(tmp_path)).tell("evaluated", 5)
    left = status.seconds_left(Moment(story.program, story.state), story.now)
    assert left is not None and 0.5 * 10 * 25 / 5 < left < 2 * 10 * 25 / 5
    assert status.seconds_left(story.program, State(opened_at=BEGAN), BEGAN) is None
