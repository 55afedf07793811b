"""docs/invariance.md: the table of `landscape audit small-vs-large --metrics all`, and what it says."""

from __future__ import annotations

from pathlib import Path

from pandas import DataFrame

from landscape_cli.audit.invariance import heading, worst_first
from landscape_cli.audit.transforms import TRANSFORMS
from landscape_cli.store import tables

REFERENCE = Path(__file__).parents[1] / "results" / "reference" / "audit"
NOTE = (
    "<!-- Made by `python docs/generate.py` from results/reference/audit. Do not edit: change docs/invariance.py. -->"
)
TEXT = """# What survives a change of parameters that changes nothing

Dinh et al. (2017) showed that a minimum can be made as sharp as one likes without changing the network's function.
Then no number that such a change moves can explain by itself why one function generalizes better than another.
`landscape audit CONFIG` takes every metric at a minimum and at its images under these transforms, in float64:

{transforms}

A metric claims what it survives (`landscape list metrics --verbose`), and a claim holds if the value stays to 1e-6.
Random directions go along with a permutation, and few are drawn: claims are checked exactly, while ratios of
estimates have the error that the table states. White noise stays as it is under a rescaling. Solvers run to 1e-8.

## One minimum of digits

`landscape audit small-vs-large --metrics all`: the value after a transform in parts of the value before, what moves
furthest first. **Bold**: claimed, and holds. A dash: no value, or the transform does not apply. {counts}

{table}

## What it means for the essay's question

- *Sharpness* is not a property of the function. {sharp} On the same minimum, `landscape audit dinh` drives
  `hessian_top` up by five orders of magnitude with no channel multiplied or divided by more than 100.
- *Filter normalization* undoes one factor a layer, but not one a channel, nor other coordinates (`landscape audit
  dinh` draws that): a row times a is a column of the next layer divided by a.
- *Contrasts* inside blocks survive what their blocks do: layers one factor a layer, kernels one a channel.
- *The local regret in the KL ball* survives every one. What it costs is in [the essay's own table](essay.md): at a
  minimum where the rank is full it tells what the training losses tell.
- `logits` changes probabilities, not classes: only accuracies, margins up to their unit, and counts stand it.
- `global` is another unit for all parameters: a measure that notices it has a unit.
"""


def page(folder: Path = REFERENCE) -> str:
    """The page as Markdown."""
    table = tables.read_table(folder / "invariance.csv")
    kinds = [f"- `{name}`: {t.summary[0].lower()}{t.summary[1:]}" for name, t in TRANSFORMS.items()]
    claims = table[table["claim"] != ""]["verdict"].value_counts()
    counts = f"{claims.get('holds', 0)} claims hold, {claims.get('broken', 0)} are broken."
    top = table[(table["metric"] == "hessian_top") & (table["transform"] == "filter_scale")].iloc[0]
    sharp = f"A random factor a channel alone takes `hessian_top` from {top['before']:.3g} to {top['after']:.3g}."
    text = TEXT.format(transforms="\n".join(kinds), counts=counts, table=_table(table), sharp=sharp)
    return f"{NOTE}\n{text}"


def _table(table: DataFrame) -> str:
    applied = table[table["verdict"] != "not applicable"]
    columns = list(dict.fromkeys(zip(applied["transform"], applied["strength"], strict=True)))
    cells = {(r["metric"], r["setting"], r["transform"], r["strength"]): r for r in table.to_dict("records")}
    lines = [
        "| metric | " + " | ".join(heading(*c) for c in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for metric, setting in worst_first(applied):
        name = f"`{metric}` ({setting.replace('=', ' = ').replace(';', ', ')})" if setting else f"`{metric}`"
        lines.append(f"| {name} | " + " | ".join(_cell(cells[metric, setting, *c]) for c in columns) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, object]) -> str:
    ratio, verdict = row["ratio"], row["verdict"]
    if verdict == "holds":
        return "**1**"
    return "-" if verdict == "not applicable" or ratio != ratio else f"{ratio:.3g}"
