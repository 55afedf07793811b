"""report.html: what an experiment found, in one file that opens offline, from its tables and plots."""

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from math import isnan, log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pandas import DataFrame, Series, isna

from landscape_cli.registry.errors import Fault
from landscape_cli.report.inputs import table
from landscape_cli.report.statistics import (
    ALPHA,
    NO_NAMES,
    collapsed,
    group_names,
    hypotheses,
    p_floor,
    printable,
    short,
    t_interval,
)
from landscape_cli.store.columns import OUTCOMES, RUN_COLUMNS, SWEPT, TYPES

CHANGING = ("files", "started", "ended")  # of the manifest
RUN_MEANINGS = {column.name: column.meaning for column in RUN_COLUMNS if column.in_report}


class Picture(NamedTuple):
    """A picture, inline."""

    title: str
    caption: str
    src: str
    width: int
    height: int
    page: str  # file of its interactive form, beside the report; empty if there is none


def shown(value: Any) -> str:
    """A number to 3 significant digits, a missing one as a dash, text as it is."""
    if isinstance(value, str):
        return value
    return "–" if isna(value) else short(float(value))


def full(value: Any) -> str:
    """A number with all its digits, for a tooltip and for sorting; empty if missing."""
    if isinstance(value, str):
        return value
    return "" if isna(value) else repr(value.item() if isinstance(value, np.generic) else value)


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def named(row: Series) -> str:
    """A metric with its setting."""
    return f"{row['metric']} ({row['setting']})" if row["setting"] else str(row["metric"])


def group_order(comparison: DataFrame, runs: DataFrame) -> list[str]:
    """Groups in the comparison's order, or as they appear among the runs."""
    return group_names(comparison) or list(dict.fromkeys(runs["group"]))


def accuracy_sentence(runs: DataFrame, groups: list[str]) -> str:
    """Test accuracy of each group, with its 95 % interval over seeds."""
    sentences = []
    for group in groups:
        ok = runs[(runs["status"] == "ok") & (runs["group"] == group)]
        values = ok["test_accuracy"].dropna().to_numpy(dtype=np.float64) * 100
        mean, low, high = t_interval(values)
        if len(values) > 1:
            interval = f"{max(0, low):.1f} to {min(100, high):.1f}"
            sentences.append(f"{group} {mean:.1f} % (95 % interval {interval}, {len(values)} runs)")
        elif len(values) == 1:
            sentences.append(f"{group} {mean:.1f} % (a single run)")
    return f"Test accuracy: {listed(sentences)}." if sentences else "No run has a test accuracy."


def contrast(row: Series, first: str) -> str:
    """One difference in words."""
    if isnan(row["ratio"]):
        return f"{named(row)} is {direction(row)} than in {first}"
    interval = "" if isnan(row["ratio_low"]) else f" ({short(row['ratio_low'])} to {short(row['ratio_high'])})"
    return f"{named(row)} is {short(row['ratio'])} times{interval} that of {first}"


def floor_sentence(tested: DataFrame, first: str, last: str, count: int) -> str:
    """A warning where so few runs could not have shown any difference; else empty."""
    counts = tested[f"{first}_n"], tested[f"{last}_n"]
    n1, n2 = int(counts[0].max()), int(counts[1].max())
    floor = p_floor(n1, n2)
    if floor * count < ALPHA:
        return ""
    return (
        f"With {n1} and {n2} runs the smallest possible p-value is {short(floor)}: tested {count} times, not "
        "even a perfect separation would count as a difference. Add seeds."
    )


def difference_sentences(comparison: DataFrame, groups: list[str], same: Mapping[str, str]) -> list[str]:
    """Which metrics differ between the first and the last group, the largest ratios first; honest if none does."""
    if len(groups) < 2 or not len(comparison):
        return ["There is nothing to compare: it takes two groups with measured metrics."]
    first, last = groups[0], groups[-1]
    tested = comparison.assign(hypothesis=hypotheses(comparison, same)).dropna(subset="p_holm")
    metrics = tested[~tested["metric"].isin(OUTCOMES)].drop_duplicates("hypothesis")
    if not len(metrics) and len(tested):
        return []  # outcomes alone: there is no metric to speak of
    if not len(metrics):
        return [f"No metric has the two values a group that a test of {last} against {first} needs."]
    differ = metrics[metrics["p_holm"] < ALPHA]
    sizes = [size(ratio) for ratio in differ["ratio"]]
    top = differ.iloc[np.argsort([-s for s in sizes], kind="stable")].head(3)
    if not len(differ):
        head = (
            f"None of {len(metrics)} metrics differs clearly between {first} and {last} (Mann-Whitney test, Holm's "
            "correction, p < 0.05). That is no proof that they are equal."
        )
    else:
        head = (
            f"{len(differ)} of {len(metrics)} metrics differ between {first} and {last} (Mann-Whitney test, Holm's "
            f"correction, p < 0.05). In {last}, " + listed([contrast(row, first) for _, row in top.iterrows()]) + "."
        )
    return [head, *filter(None, [floor_sentence(tested, first, last, tested["hypothesis"].nunique())])]


def size(ratio: float) -> float:
    """How large a difference is, |log ratio|; those without a ratio (means of opposite sign) come last."""
    return abs(log(ratio)) if ratio > 0 else -1.0


def headline(runs: DataFrame, comparison: DataFrame, same: Mapping[str, str] = NO_NAMES) -> str:
    """The answer in one paragraph, computed from the tables.

    Args:
        runs: runs.csv.
        comparison: comparison.csv, or an empty table.
        same: metric -> the metric of which it is a monotone function: both are counted once.
    Returns: plain text.
    """
    groups = group_order(comparison, runs)
    bad = int((runs["status"] != "ok").sum())
    left_out = [f"{bad} of {len(runs)} runs did not end ok and {'is' if bad == 1 else 'are'} left out."] if bad else []
    return " ".join([accuracy_sentence(runs, groups), *difference_sentences(comparison, groups, same), *left_out])


def pictures(folder: Path) -> list[Picture]:
    """plots/*.png as data URIs: known ones first, in the order of the table of figures, then the others by name."""
    from landscape_cli.report.figures import figures  # loads matplotlib, which a headline does without

    rows = figures()
    order = list(rows)
    paths = sorted(folder.glob("*.png"), key=lambda p: (order.index(p.stem) if p.stem in rows else len(order), p.name))
    found = []
    for path in paths:
        data, row = path.read_bytes(), rows.get(path.stem)
        width, height = struct.unpack(">II", data[16:24]) if len(data) >= 24 else (0, 0)  # the PNG's IHDR
        title, caption = (row.title, row.caption) if row else (path.stem.replace("_", " "), "")
        src = "data:image/png;base64," + base64.b64encode(data).decode()
        page = f"plots/{path.stem}.html" if path.with_suffix(".html").is_file() else ""
        found.append(Picture(title, caption, src, width, height, page))
    return found


def failures(runs: DataFrame, metrics: DataFrame) -> list[tuple[str, str, str, int]]:
    """What did not work: (name, status, message, how many runs), runs first, then metrics."""
    bad = runs[runs["status"] != "ok"]
    found = [(r["run_id"], r["status"], r["message"], 1) for _, r in bad.iterrows()]
    if not len(metrics):
        return found
    lost = collapsed(metrics[(metrics["status"] != "ok") & ~metrics["run_id"].isin(bad["run_id"])], runs)
    same: dict[tuple[str, str, str], set[str]] = {}
    for _, r in lost.iterrows():
        name = named(r) if isna(r.get("epoch")) else f"{named(r)} at snapshots"
        same.setdefault((name, r["status"], r["message"]), set()).add(r["run_id"])
    return [*found, *((*key, len(which)) for key, which in same.items())]


def direction(row: Series) -> str:
    """How the last group stands to the first, in a word or two."""
    if isna(row["p_holm"]):
        return "too few values"
    if row["p_holm"] >= ALPHA:
        return "not clearly different"
    return "higher" if row["cliffs_delta"] > 0 else "lower"


def comparison_rows(comparison: DataFrame, about: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of the page's main table."""
    return [
        {
            "metric": row["metric"],
            "setting": row["setting"],
            "about": about.get(row["metric"], ""),
            "groups": [[row[f"{g}_{k}"] for k in ("mean", "ci_low", "ci_high", "n")] for g in group_names(row)],
            "tests": [row[k] for k in ("ratio", "ratio_low", "ratio_high", "cliffs_delta", "p_value", "p_holm")],
            "verdict": direction(row),
            "differs": row["p_holm"] < ALPHA,
        }
        for _, row in comparison.iterrows()
    ]


def floor_note(comparison: DataFrame) -> str:
    """The smallest p-value at the largest group sizes of the table."""
    groups = group_names(comparison)
    if len(groups) < 2 or not len(comparison):
        return ""
    n1, n2 = int(comparison[f"{groups[0]}_n"].max()), int(comparison[f"{groups[-1]}_n"].max())
    return f"with {n1} and {n2} runs it cannot be below {short(p_floor(n1, n2))}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one if the file is missing or broken: provenance never stops a report."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def provenance(folder: Path) -> dict[str, Any]:
    """What manifest.json says of how the results came to be, without what is other after every command."""
    return {key: value for key, value in read_json(folder / "manifest.json").items() if key not in CHANGING}


def environment() -> Environment:
    """Templates with every value escaped, its control characters shown as '?', and no value forgotten."""
    env = Environment(
        loader=PackageLoader("landscape_cli.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda v: printable(v) if isinstance(v, str) and not isinstance(v, Markup) else v,
    )
    env.filters |= {"shown": shown, "full": full}
    return env


def render(folder: Path, about: Mapping[str, str] = NO_NAMES, same: Mapping[str, str] = NO_NAMES) -> bytes:
    """The report of an experiment, self-contained; the same bytes for the same files.

    Args:
        folder: results/<experiment>, with runs.csv and what there is of metrics.csv, comparison.csv, experiment.yaml,
            manifest.json and plots/*.png.
        about: one line on each metric, by its name, for those who meet it the first time.
        same: metric -> the metric of which it is a monotone function.
    Returns: HTML, UTF-8.
    Raises: Fault: there is no runs.csv.
    """
    if not (folder / "runs.csv").exists():
        raise Fault(f"{folder}: runs.csv is missing: run `landscape train` or `landscape compare` first")
    runs, metrics, comparison = (table(folder / f"{name}.csv") for name in ("runs", "metrics", "comparison"))
    config, manifest = folder / "experiment.yaml", provenance(folder)
    known = [c for c in runs.columns if c in RUN_MEANINGS or c not in TYPES]
    page = environment().get_template("report.html.j2")
    html = page.render(
        name=folder.resolve().name,
        headline=headline(runs, comparison, same),
        groups=group_order(comparison, runs),
        rows=comparison_rows(comparison, about),
        floor=floor_note(comparison),
        figures=pictures(folder / "plots"),
        failures=failures(runs, metrics),
        run_columns={c: RUN_MEANINGS.get(c, SWEPT) for c in known},
        runs=runs[known].astype(object).to_dict("records"),
        settings=config.read_text(encoding="utf-8") if config.exists() else "",
        manifest=json.dumps(manifest, indent=2, ensure_ascii=False) if manifest else "",
        counts={"ok": int((runs["status"] == "ok").sum()), "all": len(runs)},
    )
    return html.encode("utf-8", "replace")
