"""The progress display, with a clock that the test turns."""

import io

from rich.console import Console

from robustcli.utils.progress import Part, Progress


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=60, force_terminal=False), out


def test_plain_lines_come_every_n_seconds_and_at_the_end() -> None:
    clock, (console, out) = Clock(), plain()
    with Progress(40, "train", every_seconds=10, console=console, clock=clock) as progress:
        for step in range(25):
            clock.now += 1
            progress.advance(samples=128, loss=2.0 - step / 100, recall=45.123)
    assert out.getvalue().splitlines() == [
        "train 10/40  loss 1.91  recall 45.1  128 samples/s  0:00:30 left",
        "train 20/40  loss 1.81  recall 45.1  128 samples/s  0:00:20 left",
        "train 25/40  loss 1.76  recall 45.1  128 samples/s  0:00:15 left",
    ]


def test_a_last_step_that_is_shown_already_is_not_shown_again() -> None:
    clock, (console, out) = Clock(), plain()
    with Progress(1, "diagnostics", unit="numbers", console=console, clock=clock) as progress:
        clock.now += 20
        progress.advance(1)
    assert out.getvalue() == "diagnostics 1/1  0.05 numbers/s  0:00:00 left\n"


def test_time_left_is_at_the_mean_speed_so_far() -> None:
    clock, (console, _) = Clock(), plain()
    with Progress(1000, "train", console=console, clock=clock) as progress:
        assert progress.time_left() is None
        clock.now += 10
        progress.advance(10)
        assert progress.time_left() == 990
        progress.advance(980)
        assert progress.time_left() == 10 * 10 / 990


def test_steps_of_an_earlier_session_do_not_count_as_speed() -> None:
    clock, (console, out) = Clock(), plain()
    with Progress(100, "train", done=90, console=console, clock=clock) as progress:
        clock.now += 5
        progress.advance(5)
        assert progress.time_left() == 5
    assert out.getvalue() == "train 95/100  1 samples/s  0:00:05 left\n"


def test_last_known_field_stays_in_sight() -> None:
    clock, (console, _) = Clock(), plain()
    progress = Progress(None, "attack", console=console, clock=clock)
    progress.advance(recall=12.5)
    progress.advance(loss=1234.5)
    assert progress.text() == "recall 12.5  loss 1234"


def test_terminal_shows_a_bar_that_ends_full() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None)
    with Progress(3, "attack", console=console) as progress:
        progress.advance(3, recall="50")
    assert "attack" in out.getvalue() and "3/3" in out.getvalue() and "recall 50" in out.getvalue()


def test_a_display_keeps_to_its_lines_in_a_narrow_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None, _environ={})
    with Progress(20, "diagnostics", unit="checks", console=console) as progress:
        progress.advance(2, check="a check with a very long name that no line has room for")
        assert progress.text().partition("  ")[0].endswith(" left")
    final = out.getvalue().rsplit("\x1b[2K", 1)[-1].strip()
    (line,) = final.removesuffix("\x1b[?25h").splitlines()
    assert line.startswith("diagnostics ━") and " 2/20 " in line and " left" in line and line.endswith("…")


def test_names_are_plain_text_in_a_bar_and_in_a_line() -> None:
    for terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, width=120, force_terminal=terminal, color_system=None, _environ={})
        with Progress(1, "transfer: [/red]", console=console) as progress:
            progress.advance(run="[bold]a:smile:")
        assert "transfer: [/red]" in out.getvalue() and "[bold]a:smile:" in out.getvalue()


def test_a_part_has_its_own_count_and_the_time_left_goes_by_the_work_that_is_left() -> None:
    clock, (console, out) = Clock(), plain()
    with Progress(20, "judge", unit="images", work=100.0, console=console, clock=clock) as progress:
        clock.now += 20
        progress.advance_part(4, Part("model: pgd", "a", 10), work=2.0)
        clock.now += 20
        progress.advance_part(6, Part("model: pgd", "a", 10), work=3.0)
        clock.now += 40
        progress.advance_part(5, Part("model: pgd", "b", 10), work=5.0)  # another radius
    assert out.getvalue().splitlines() == [
        "judge 4/20  model: pgd 4/10  0.2 images/s  0:16:20 left",
        "judge 10/20  model: pgd 10/10  0.25 images/s  0:12:40 left",
        "judge 15/20  model: pgd 5/10  0.188 images/s  0:12:00 left",
    ]


def test_the_time_left_goes_on_between_two_steps_and_waits_for_enough_of_the_work() -> None:
    clock, (console, _) = Clock(), plain()
    with Progress(100, "judge", work=1000.0, console=console, clock=clock) as progress:
        clock.now += 50
        progress.advance_part(1, Part("a", "a", 100), work=5.0)  # the start of processes, and hardly any work
        assert progress.time_left() is None
        progress.advance_part(9, Part("a", "a", 100), work=95.0)
        assert progress.time_left() == 450
        clock.now += 100
        assert progress.time_left() == 350 and "0.2 samples/s" in progress.text()
        progress.advance_part(0, Part("b", "b", 100))
        assert progress.time_left() == 350 and "b 0/100" in progress.text()


def test_a_terminal_shows_the_part_in_a_line_of_its_own_within_one_display() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None, _environ={})
    with Progress(20, "judge", console=console) as progress:
        progress.advance_part(10, Part("first", "a", 10))
        progress.advance_part(3, Part("second", "b", 10))
    *_, outer, inner = [line for line in out.getvalue().splitlines() if line.strip(" \x1b[?25h")][-2:]
    assert "13/20" in outer and "second" in inner and "3/10" in inner
