"""A watch that fails ends no job; signals pass."""

import pytest

from landscape_cli.engine import Interrupted, contained


@pytest.mark.parametrize("error", [OverflowError("too large\nsecond line"), SystemExit(1), BrokenPipeError()])
def test_the_first_failure_is_a_warning_and_the_last_call(error: BaseException) -> None:
    calls, warnings = [], list[str]()

    def watch(event: str) -> None:
        calls.append(event)
        if event == "bad":
            raise error

    tell = contained(watch, warnings)
    for event in ("good", "bad", "good", "bad"):
        tell(event)
    assert calls == ["good", "bad"] and len(warnings) == 1
    assert warnings[0].startswith(f"progress is no longer shown: {type(error).__name__}") and "\n" not in warnings[0]


@pytest.mark.parametrize("signal", [KeyboardInterrupt(), Interrupted(15)])
def test_signals_pass(signal: BaseException) -> None:
    def watch() -> None:
        raise signal

    with pytest.raises(type(signal)):
        contained(watch, [])()
