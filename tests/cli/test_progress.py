"""Progress: a forecast means something or is not shown, whatever the losses; the display counts what is done."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landscape_cli.cli import progress, terminal
from landscape_cli.config import Stop

STEPS = [0, *range(5, 400, 5)]
CURVES: dict[str, list[float]] = {  # a loss at each of STEPS -> what a forecast must never take for progress
    "flat": [1.8] * len(STEPS),
    "nearly flat": [1.8 + 1e-7 / (s + 1) for s in STEPS],
    "last bit": [math.nextafter(1.8, 2) if s < 100 else 1.8 for s in STEPS],
    "rising": [0.1 + 0.01 * s for s in STEPS],
    "fell, then rises": [2.3 / (s + 1) if s < 100 else 0.02 + 0.001 * (s - 100) for s in STEPS],
    "fell off a step, then rises": [2.0 if s <= 90 else 0.1 + 0.001 * max(0, s - 100) for s in STEPS],
    "last bit, huge": [math.nextafter(1e300, math.inf) if s < 100 else 1e300 for s in STEPS],
    "nan": [math.nan] * len(STEPS),
    "inf": [math.inf] * len(STEPS),
    "huge": [1e308 / (1 + 1e-9 * s) for s in STEPS],
    "zero": [0.0] * len(STEPS),
    "negative": [-1.0] * len(STEPS),
}


def history(losses: list[float]) -> dict[str, list[float]]:
    steps = STEPS[: len(losses)]
    return {"epoch": [s / 5 for s in steps], "step": steps, "train_loss": losses}


@pytest.mark.parametrize("name", CURVES)
def test_no_look_at_a_curve_that_does_not_get_there_has_a_forecast(name: str) -> None:
    looks = [progress.forecast(history(CURVES[name][:n]), 0.01) for n in range(len(STEPS) + 1)]
    early = [n for n in range(len(STEPS)) if STEPS[n] >= 150] if "then rises" in name else range(len(looks))
    assert [looks[n] for n in early] == [None] * len(early)


def test_a_power_law_is_forecast_exactly() -> None:
    losses = [3.0 * max(s, 1) ** -0.7 for s in STEPS]
    due = (3.0 / 0.03) ** (1 / 0.7)
    looks = [progress.forecast(history(losses[:n]), 0.03) for n in range(len(STEPS) + 1)]
    known = [end for end in looks if end is not None]
    assert len(known) > len(STEPS) / 2 and known == pytest.approx([due] * len(known), rel=1e-9)
    last = STEPS[-1]
    assert progress.forecast(history(losses), 0.03, max_epochs=due / 5 * 0.99) is None  # it will never get there
    assert progress.forecast(history(losses), 0.03, max_epochs=due / 5 * 1.01) is not None
    assert progress.forecast(history(losses), 0.03, max_steps=due * 0.99) is None
    assert progress.forecast(history(losses), losses[-1]) == pytest.approx(last)
    assert progress.forecast(history(losses), None) is None
    assert progress.forecast(history([*losses[:-1], math.nan]), 0.03) is None


ANY = st.one_of(st.floats(), st.integers(-(2**63), 2**63))


@given(
    looks=st.lists(st.tuples(ANY, ANY, st.floats()), max_size=12),
    goal=st.one_of(st.none(), st.floats(min_value=0, allow_infinity=False)),
    epochs=st.one_of(st.none(), st.integers(1, 2**63)),
    steps=st.one_of(st.none(), st.integers(1, 2**63)),
)
def test_any_history_has_a_finite_positive_forecast_or_none(
    looks: list[tuple[float, float, float]], goal: float | None, epochs: int | None, steps: int | None
) -> None:
    columns = dict(zip(("epoch", "step", "train_loss"), map(list, zip(*looks, strict=True)), strict=False))
    end = progress.forecast({"epoch": [], "step": [], "train_loss": []} | columns, goal, epochs, steps)
    assert end is None or 0 < end < math.inf


@given(
    steps=st.lists(st.floats(1e-3, 1e6), min_size=5, max_size=30, unique=True).map(sorted),
    falls=st.lists(st.floats(0, 1e-3), min_size=30, max_size=30),
)
def test_nearly_flat_falling_curves_of_any_shape(steps: list[float], falls: list[float]) -> None:
    loss, losses = 2.0, []
    for fall in falls[: len(steps)]:
        loss *= 1 - fall
        losses.append(loss)
    end = progress.forecast({"epoch": steps, "step": steps, "train_loss": losses}, 0.01)
    assert end is None or steps[-1] <= end <= progress.FARTHEST * steps[-1]


def stack(group: str = "small") -> list[Any]:
    training = SimpleNamespace(stop=Stop(train_loss=0.01))
    return [SimpleNamespace(group=group, settings=SimpleNamespace(training=training))]


def test_the_display_says_what_is_done_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal a line each EVERY seconds, here 0; text of a config is no markup."""
    lines: list[str] = []
    monkeypatch.setattr(terminal, "note", lines.append)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress.shown(quiet=False) as watch:
        watch("train", {"runs": 4, "done": 1, "stacks": 1})
        watch("stack", {"stack": stack()})
        for n in range(2, len(STEPS)):
            losses = [3.0 * max(s, 1) ** -0.9 for s in STEPS[:n]]
            state = SimpleNamespace(step=STEPS[n - 1], history=[history(losses)], active=[0])
            watch("step", {"stack": stack("[red]small"), "state": state})
        watch("run", {"record": {}})
        watch("measure", {"cells": 4})
        for i in range(3):
            watch("metric", {"metric": "[b]regret"})
            watch("cell", {"metric": "regret", "runs": 1})
            assert f"measuring [b]regret  {i}/4 cells" in lines[-1]
        watch("draw", {})
    assert lines[0].startswith("training [red]small  1/4 runs  step 5  loss 0.705")
    assert "s left for these" in lines[-5] and "drawing figures and report" in lines[-1]
    assert not any("left" in line for line in lines[:3])  # too early to say


def test_nothing_is_shown_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    with progress.shown(quiet=True) as watch:
        watch("draw", {})
        print("of a plugin")
    assert capfd.readouterr() == ("", "of a plugin\n")
