"""How the story is told to programs and to people."""

import pytest

from meshagent.demo.narrator import DemoError, Narrator, check


def test_a_step_that_raises_is_told_as_failed_with_the_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    tell = Narrator(quiet=False)
    with tell.step("1/2", "first", "goes well") as result:
        result.detail = "seen"
    with pytest.raises(DemoError), tell.step("2/2", "second", "goes wrong"):
        check(False, "the payload is readable")
    assert tell.as_dict()["ok"] is False
    assert [(s["name"], s["ok"], s["detail"]) for s in tell.as_dict()["steps"]] == [
        ("first", True, "seen"),
        ("second", False, "the payload is readable"),
    ]
    assert "FAILED the payload is readable" in capsys.readouterr().out


def test_a_pipe_gets_no_colours_and_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    tell = Narrator(quiet=False)
    with tell.step("1/1", "one", "title"), tell.waiting("something"):
        tell.command("web", "ls")
    out = capsys.readouterr().out
    assert "\x1b" not in out and "something" not in out and "web# ls" in out


def test_a_quiet_narrator_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    tell = Narrator(quiet=True)
    with tell.step("1/1", "one", "title"), tell.waiting("something"):
        tell.note("seen")
    assert capsys.readouterr().out == ""


def test_nothing_told_is_not_a_success() -> None:
    assert Narrator(quiet=True).as_dict() == {"ok": False, "steps": []}
