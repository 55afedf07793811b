"""What a metric claims to survive, and whether two values bear it out."""

from __future__ import annotations

from math import isfinite, isnan
from typing import Any

from landscape_cli.registry import REGISTRY, Entry, claims

ROUNDING = 1e-14  # what a sum that should be 0 comes to
TOLERANCE, SEARCHED = 1e-6, 1e-4  # relative, of a claim; of one whose metric follows a search
IMPLIED = {"smooth": {"smooth", "global", "filter", "scale", "permutation"}, "filter": {"filter", "scale"}}


def tolerance(name: str) -> float:
    """How much a metric that is claimed to survive may change, relative."""
    return SEARCHED if REGISTRY["metric"][name].facts.get("search") else TOLERANCE


def same(before: float, after: float, tolerance: float = TOLERANCE) -> bool:
    """Whether two values agree to a relative tolerance."""
    return before == after or (
        isfinite(before - after) and abs(after - before) <= tolerance * max(abs(before), abs(after))
    )


def verdict(
    before: float, after: float, error: float, claim: str, applies: bool = True, tolerance: float = TOLERANCE
) -> str:
    """`holds`, `broken` or `never claimed`; `not applicable`: for this network, or the metric has no value before.

    `unresolved`: draws of a plugin's own may hide that a claim holds, or both values are rounding of 0.
    """
    if not applies or isnan(before):
        return "not applicable"
    if not claim:
        return "never claimed"
    if same(before, after, tolerance):
        return "holds"
    hidden = isfinite(error) and abs(after - before) <= 3 * error
    return "unresolved" if hidden or max(abs(before), abs(after)) <= ROUNDING else "broken"


def claimed(entry: Entry, settings: dict[str, Any], survives: str) -> str:
    """The claim of a metric, at these settings, by which it survives a transform; empty if it has none."""
    for key, stated in claims(entry).items():
        name, _, value = key.partition("=")
        if name and not equal(settings[name], value):
            continue
        for claim in stated:
            if survives == claim or survives in IMPLIED.get(claim, ()):
                return claim
            if claim == "output" and survives:
                return claim
    return ""


def equal(value: Any, text: str) -> bool:
    """Whether a setting's value is what a claim's key says, `blocks=layer` or `eps=1e-3`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).lower() == text.lower()
    try:
        return float(text) == value
    except ValueError:
        return False
