"""docs/essay.md, from essay.md.in and the tables of a run; the tables decide each number and each direction.

`python docs/essay.py [results/essay]` draws its figures; `python docs/generate.py` writes the page.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import pairwise
from math import isnan
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
import yaml

from landscape_cli import registry
from landscape_cli.report import statistics
from landscape_cli.report.statistics import ALPHA, short, told
from landscape_cli.store import columns

HERE = Path(__file__).parent
TABLES = HERE.parent / "results" / "reference" / "essay"
PIXELS = 64  # of an image of the digits
Rows = list[pd.Series]

SAM = [("sam_sharpness", "solver=converged"), ("sam_sharpness", "solver=ascent")]
FLATNESS = [("hessian_top", ""), ("hessian_trace", ""), *SAM]
OUTCOMES = [("test_loss", ""), ("test_accuracy", ""), ("loss_gap", "")]
CONTRASTS = [
    (f"contrast_{n}", f"blocks={b}") for n in ("spectral", "frobenius", "sharpness") for b in ("none", "layer")
]
SCATTER = [("minima_scatter", ""), ("tic_fisher", "")]
FIGURES = {
    "essay-flatness": [("train_loss", ""), *FLATNESS[:3], *OUTCOMES, SAM[1]],
    "essay-contrast": [*CONTRASTS, *SCATTER],
}
CLAIMS = [*FLATNESS[:3], ("regret", "minibatch_size=10"), ("gradient_cosine", "minibatch_size=10"), *CONTRASTS[2:4]]
CLAIMS += [("contrast_frobenius", "blocks=kernel"), ("fisher_weighted_norm", ""), ("ewc_distance", "to=small")]
CLAIMS += [
    ("regret_kl", "minibatch_size=10;over=minibatches"),
    ("regret_kl_closed_form", "minibatch_size=10;over=minibatches"),
]
CLAIMS += [("tic_fisher", "")]
SHOWN = {  # the setting that stands for a measure in the verdict, where it is not its first
    "regret": "minibatch_size=10",
    "gradient_norm": "minibatch_size=10",
    "gradient_cosine": "minibatch_size=10",
    "gradient_disparity": "minibatch_size=10",
    "gradient_confusion": "minibatch_size=10",
    "coherence": "minibatch_size=10",
    "jensen_gap": "minibatch_size=10",
    "regret_kl": "minibatch_size=10;over=minibatches",
    "regret_kl_closed_form": "minibatch_size=10;over=minibatches",
    "fisher_rank_deficit": "over=minibatches",
    "regret_exact": "radius=0.001",
    "regret_kl_exact": "radius=1e-08",
    "sam_sharpness": "solver=converged",
    **{
        f"contrast_{name}": "blocks=layer"
        for name in ("spectral", "frobenius", "sharpness", "fisher", "fisher_empirical")
    },
}
BRIEF = ("minibatch_size", "over", "solver", "blocks", "radius", "to")  # parts of a setting that the page names


class Tables:
    """The tables of one run of the experiment, and what the page asks of them."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.metrics = (pd.read_csv(folder / f"{name}.csv") for name in ("runs", "metrics"))
        self.comparison = pd.read_csv(folder / "comparison.csv").fillna({"setting": ""})
        self.metrics["setting"] = self.metrics["setting"].fillna("")
        self.experiment: dict[str, Any] = yaml.safe_load((folder / "experiment.yaml").read_text("utf-8"))

    def row(self, metric: str, setting: str = "", **parts: object) -> pd.Series:
        """The one row of comparison.csv whose setting has these parts, the first if the metric has no more to tell."""
        wanted = told(setting) | {k: str(v) for k, v in parts.items()}
        rows = self.comparison[self.comparison["metric"] == metric]
        found = [r for _, r in rows.iterrows() if wanted.items() <= told(r["setting"]).items()]
        if not found:
            raise LookupError(f"comparison.csv has no row {metric} with {wanted}")
        return min(found, key=lambda r: len(told(r["setting"])))

    def rows(self, keys: Iterable[tuple[str, str]]) -> Rows:
        return [self.row(*key) for key in keys]

    def each(self, metric: str, group: str, **parts: object) -> pd.DataFrame:
        """Rows of metrics.csv, a row a run where the setting is unique."""
        wanted = {k: str(v) for k, v in parts.items()}
        own = self.metrics[(self.metrics["metric"] == metric) & (self.metrics["group"] == group)]
        return own[[wanted.items() <= told(setting).items() for setting in own["setting"]]]

    @cached_property
    def ranks(self) -> dict[str, list[tuple[int, int, float]]]:
        """Rank of U, its rows and the smallest singular value kept, of each run; by `over`."""
        said = re.compile(r"rank (\d+) of (\d+) rows, smallest singular value kept ([\d.e-]+)")
        found: dict[str, list[tuple[int, int, float]]] = {}
        for _, r in self.metrics[self.metrics["metric"] == "fisher_rank_deficit"].iterrows():
            hit = said.search(str(r["message"]))
            assert hit, r["message"]
            found.setdefault(told(r["setting"])["over"], []).append((int(hit[1]), int(hit[2]), float(hit[3])))
        return found

    def slope(self, group: str) -> float:
        """Mean |G|, from tr F_emp = |G|^2 (1 + noise scale)."""
        trace = self.each("fisher_trace", group, minibatch_size=1).set_index("run_id")["value"]
        return float(
            (trace / (1 + self.each("gradient_noise_scale", group).set_index("run_id")["value"])).pow(0.5).mean()
        )


def direction(row: pd.Series) -> str:
    """How large stands to small; empty unless Holm's p-value says that they differ."""
    if isnan(row["p_holm"]) or row["p_holm"] >= ALPHA:
        return ""
    return "higher" if row["cliffs_delta"] > 0 else "lower"


def word(row: pd.Series) -> str:
    return direction(row) or "no clear difference"


def label(row: pd.Series) -> str:
    parts = [(k, v) for k, v in told(row["setting"]).items() if k in BRIEF]
    names = {"minibatch_size": "m", "solver": "", "blocks": "blocks"}
    text = ", ".join(f"{names.get(k, k)} = {v}".removeprefix(" = ") for k, v in parts)
    return f"`{row['metric']}`" + (f" ({text})" if text else "")


def ratio(row: pd.Series) -> str:
    if isnan(row["ratio"]):
        return f"{short(row['small_mean'])} to {short(row['large_mean'])}"
    ends = f" ({row['ratio_low']:.3g} to {row['ratio_high']:.3g})" if not isnan(row["ratio_low"]) else ""
    return f"{row['ratio']:.3g}x{ends}"


def p(row: pd.Series) -> str:
    return f"{row['p_holm']:.2g}"


def means(row: pd.Series) -> tuple[str, str]:
    return short(row["small_mean"]), short(row["large_mean"])


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table from `a|b|c` and rows of cells."""
    lines = [head.split("|"), ["---"] * len(head.split("|")), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def sides(rows: Rows, expected: Callable[[pd.Series], str]) -> str:
    """What speaks for a claim and what against it, `expected` giving the direction that the claim predicts."""
    heard: dict[str, list[str]] = {"For": [], "Against": [], "No clear difference": []}
    for row in rows:
        side = "No clear difference" if not direction(row) else "For" if direction(row) == expected(row) else "Against"
        heard[side].append(label(row) + (f": {direction(row)}, {ratio(row)}, p {p(row)}" if direction(row) else ""))
    return "\n".join(f"- **{side}.** {'; '.join(said) or 'Nothing'}." for side, said in heard.items())


def names(rows: Rows) -> str:
    said = [label(row) for row in rows]
    return " and ".join(filter(None, [", ".join(said[:-1]), said[-1]])) if said else "none"


def claims_of(row: pd.Series) -> list[str]:
    """What the metric of a row claims to survive in the setting of that row."""
    stated = registry.claims(registry.REGISTRY["metric"][row["metric"]])
    decided = [own for key, own in stated.items() if key in row["setting"].split(";")]
    return decided[0] if decided else stated[""]


def ticked(words: Iterable[str]) -> str:
    return ", ".join(f"`{w}`" for w in words)


def setup(t: Tables) -> dict[str, str]:
    e, losses = t.experiment, t.row("train_loss")
    n = int(t.each("train_loss", "small")["samples"].iloc[0])
    small_batch, large_batch = e["grid"]["training.batch_size"]
    classes = t.ranks["minibatches"][0][1] // n + 1
    widths = [PIXELS, *e["model"]["hidden"], classes]
    caveat = "That favours the group whose loss is lower: keep it in mind." if direction(losses) else ""
    return {
        "alpha": f"{ALPHA:g}",
        "n": str(n),
        "runs": str(len(t.runs)),
        "seeds": str(e["seeds"]),
        "hidden": ", ".join(map(str, e["model"]["hidden"])),
        "p": str(sum((a + 1) * b for a, b in pairwise(widths))),
        "small_batch": str(small_batch),
        "large_batch": str(large_batch),
        "stop": str(e["training"]["stop"]["train_loss"]),
        "steps_per_epoch": str(n // small_batch),
        "small_loss": short(losses["small_mean"]),
        "large_loss": short(losses["large_mean"]),
        "loss_caveat": caveat,
        "small_slope": short(t.slope("small")),
        "large_slope": short(t.slope("large")),
        **{f"rows_{k}": f"{t.ranks[o][0][1]:,}" for k, o in (("few", "minibatches"), ("many", "train_and_test"))},
    }


def flatness(t: Tables) -> dict[str, str]:
    curvature, outcomes = t.rows(FLATNESS), t.rows(OUTCOMES)
    differ, better = ([r for r in rows if direction(r)] for rows in (curvature, outcomes))
    verb = "differs" if len(differ) == 1 else "differ"
    if differ and not better:
        said = (
            f"So {names(differ)} {verb} where generalization does not, as far as these runs can see. They cannot crown "
            "another measure either: there is no difference for it to predict."
        )
    elif better:
        said = f"So generalization differs ({names(better)}), and {names(differ)} with it. Two groups show no cause."
    else:
        said = "So neither sharpness nor generalization differs clearly."
    error = t.metrics.loc[t.metrics["metric"] == "test_accuracy", "standard_error"].mean()
    left = "A small batch touches the target loss on a slope; a full batch creeps down until hardly any is left."
    return {
        "flatness_sides": sides(curvature, lambda r: "higher"),
        "slope_why": left if t.slope("small") > t.slope("large") else "",
        "outcome_sides": "And the claim that matters: *large batches generalize worse.*\n\n"
        + sides(outcomes, lambda r: "lower" if r["metric"] == "test_accuracy" else "higher"),
        "flatness_verdict": f"{said} (A standard error of one test accuracy is {100 * error:.1f} points.)",
        "flatness_alt": "Losses, accuracy and sharpness of each group, one dot a run",
        "claims_table": table("measure|survives", [(label(r), ticked(claims_of(r))) for r in t.rows(CLAIMS)]),
    }


def local_regret(t: Tables) -> dict[str, str]:
    n, sizes = int(setup(t)["n"]), (1, 10, 100)
    kinds = ("regret", "gradient_norm", "gradient_cosine", "coherence")
    shown = [t.row(kind, minibatch_size=m) for m in sizes for kind in kinds]
    judged = [r for r in shown if r["metric"] in ("regret", "gradient_cosine")]
    first, big = [t.row(name, minibatch_size=1) for name in ("regret", "gradient_norm")], max(sizes)
    limit = [first[0][f"{g}_mean"] / first[1][f"{g}_mean"] for g in ("small", "large")]
    said = f"`regret` over `gradient_norm` is {limit[0]:.3f} (small) and {limit[1]:.3f} (large) at m = 1"
    if max(abs(x - 1) for x in limit) < 0.05:
        said += ": most of what the regret says is how long gradients are."
    else:
        said += ", so the cosine has its share in the regret."
    return {
        "regret_table": table("measure|small|large|ratio|p", [(label(r), *means(r), ratio(r), p(r)) for r in shown]),
        "regret_sides": sides(judged, lambda r: "higher" if r["metric"] == "regret" else "lower"),
        "limit_verdict": said,
        "big_m": str(big),
        "artefact": short(-big / (n - big)),
        "coherence_large": means(t.row("coherence", minibatch_size=big))[1],
        "cosine_large": means(t.row("gradient_cosine", minibatch_size=big))[1],
    }


def radii(t: Tables) -> dict[str, str]:
    """How much of the first-order regret is left at each radius."""
    rows = [r for _, r in t.comparison[t.comparison["metric"] == "regret_exact"].iterrows()]
    (_, limit), *by = sorted(((float(told(r["setting"])["radius"]), r) for r in rows), key=lambda pair: pair[0])
    share = [[r[f"{g}_mean"] / limit[f"{g}_mean"] for g in ("small", "large")] for _, r in by]
    off = [max(abs(x - 1) for x in s) for s in share]
    reach = next((i for i, x in enumerate(off) if x >= 0.05), len(off))  # the first radius where it is off
    said = (
        f"The linear formula is within 5 % up to radius {by[reach - 1][0]:g}" if reach else "It holds at no radius here"
    )
    said += f", and off by {100 * off[reach]:.0f} % at {by[reach][0]:g}." if reach < len(by) else "."
    if min(range(len(share)), key=lambda i: sum(share[i])) < len(share) - 1:
        said += (
            " Beyond the lowest point the curve rises again: in so large a ball the step that fits one minibatch may "
            "spoil another, which no slope at the minimum foretells."
        )
    clear = {way: [f"{x:g}" for x, r in by if direction(r) == way] for way in ("higher", "lower")}
    heard = [f"clearly {way} for large batches at radius {', '.join(at)}" for way, at in clear.items() if at]
    said += f" It is {' and '.join(heard)}; elsewhere there is no clear difference." if heard else ""
    cells = [
        (f"{x:g}", *means(r), ratio(r), p(r), *(f"{y:.3f}" for y in s)) for (x, r), s in zip(by, share, strict=True)
    ]
    head = (
        "radius (of the length of all parameters)|small|large|ratio|p|small, over first order|large, over first order"
    )
    return {
        "radius_table": table(head, cells),
        "radius_verdict": said,
        "radius_alt": "Regret per unit radius against the radius, with its first-order limit dashed",
    }


def homework(t: Tables) -> dict[str, str]:
    limit, exact = t.row("regret_kl_exact", radius=0), t.row("regret_kl_exact", radius="1e-08")
    stated = {name: own for m in t.experiment["metrics"] if isinstance(m, dict) for name, own in m.items()}
    settings = stated["regret_kl"]
    return {
        **closed_form(t),
        "samples": str(settings["samples"]),
        "inputs": str(settings["inputs"]),
        "elongation": short(1 / float(pd.Series([s for _, _, s in t.ranks["minibatches"]]).median())),
        "kl_radius": told(exact["setting"])["radius"].replace("e-0", "e-"),
        "kl_converged": str(int(exact["small_n"] + exact["large_n"])),
        "kl_exact": f"{exact['small_mean']:.5f}",
        "kl_limit": f"{limit['small_mean']:.5f}",
        "few_samples": str(stated["regret_kl_damped"]["samples"]),
        "damped_small": means(t.row("regret_kl_damped"))[0],
        "kfac_small": means(t.row("regret_kl_kfac"))[0],
    }


def closed_form(t: Tables) -> dict[str, str]:
    """regret_kl beside what it is where its rows are independent."""
    cells, shares, alike = [], [], []
    for over in ("minibatches", "train_and_test"):
        rank = sum(r for r, _, _ in t.ranks[over]) / len(t.ranks[over])
        for m in (1, 10):
            own, closed = (t.row(name, minibatch_size=m, over=over) for name in ("regret_kl", "regret_kl_closed_form"))
            shares += [own[f"{g}_mean"] / closed[f"{g}_mean"] for g in ("small", "large")]
            alike.append(bool(own["ratio_low"] <= closed["ratio"] <= own["ratio_high"]))
            start = (f"`{over}`", m, f"{rank:.0f} of {t.ranks[over][0][1]:,}")
            cells.append((*start, *means(own), ratio(own), p(own), *means(closed), ratio(closed)))
    deficit = [means(t.row("fisher_rank_deficit", over=over))[0] for over in ("minibatches", "train_and_test")]
    said = (
        f"Most rows depend on others: `fisher_rank_deficit` is {deficit[0]} and {deficit[1]} (small). So the measure "
        f"is not trivial here. Yet it is still {100 * min(shares):.0f} to {100 * max(shares):.0f} % of its closed form"
    )
    if all(alike):
        said += (
            ", and the groups differ by the same factor in both: every interval of `regret_kl` holds the ratio of the "
            "closed form. What the invariant regret says about the two groups, their training losses say as well."
        )
    else:
        said += (
            ". But some interval of `regret_kl` does not hold the ratio of the closed form: there it says something "
            "about the groups that their training losses do not."
        )
    head = "F over|m|rank of rows|`regret_kl` small|large|ratio|p|closed form small|large|ratio"
    return {"kl_table": table(head, cells), "kl_verdict": said}


def contrast(t: Tables) -> dict[str, str]:
    kernels = [("contrast_frobenius", "blocks=kernel"), ("contrast_fisher", "blocks=none")]
    rows = t.rows([*CONTRASTS, *kernels, *SCATTER])
    curved = [r for r in rows if r["metric"].startswith("contrast_") and r["metric"] != "contrast_sharpness"]
    lower, higher = ([r for r in curved if direction(r) == way] for way in ("lower", "higher"))
    heard = [f"{way} for large batches: {names(some)}" for way, some in (("lower", lower), ("higher", higher)) if some]
    said = f"Of these, clearly {' and '.join(heard)}." if heard else "None of these tells the groups apart."
    low = sum(r["large_mean"] < r["small_mean"] for r in curved)
    said += f" Clear or not, {low} of the {len(curved)} have the lower mean at large batches"
    said += ", the direction that the essay did not expect of them." if 2 * low > len(curved) else "."
    return {
        "contrast_sides": sides(rows, lambda r: "higher"),
        "contrast_verdict": said,
        "contrast_alt": "Contrasts and the scatter of single-image minima in each group, one dot a run",
    }


def fisher(t: Tables) -> dict[str, str]:
    ones = [t.row(name, minibatch_size=1) for name in ("fisher_trace", "gradient_norm", "jensen_gap")]
    said = ["tr F = tr H", "tr F_emp = E \\|g\\|^2", "E \\|g\\|", "sqrt(E \\|g\\|^2) - E \\|g\\|"]
    both = zip(said, [t.row("hessian_trace"), *ones], strict=True)
    factor = {g: t.row("hessian_trace")[f"{g}_mean"] / ones[0][f"{g}_mean"] for g in ("small", "large")}
    head = "|measure, at m = 1|small|large|ratio|p"
    return {
        "trace_table": table(head, [(what, f"`{r['metric']}`", *means(r), ratio(r), p(r)) for what, r in both]),
        **{f"fisher_factor_{g}": f"{x:.2g}" for g, x in factor.items()},
        **consolidation(t),
    }


def consolidation(t: Tables) -> dict[str, str]:
    """EWC's penalties between minima, those of one seed apart from the others."""
    pairs, ways = penalties(t), [(a, b) for a in ("small", "large") for b in ("small", "large")]
    cells = [(a, b, *(short(pairs[a, b, s]) if (a, b, s) in pairs else "none" for s in (False, True))) for a, b in ways]
    other, twins = [pairs[a, b, False] for a, b in ways], [pairs[a, b, True] for a, b in ways if a != b]
    compared = t.rows([("ewc_distance", "to=small"), ("ewc_distance", "to=large"), ("fisher_weighted_norm", "")])
    text = f"At large minima against small ones: {'; '.join(f'{label(r)} {word(r)}, {ratio(r)}' for r in compared)}."
    if max(twins) < min(other):
        text += " The start decides more than the batch size: the two minima of one seed are by far the nearest."
    origin = compared[2]["small_mean"] / 2
    text += f" `fisher_weighted_norm` / 2 is the penalty for setting all parameters to 0: {short(origin)} (small)"
    if origin < min(other):
        text += (
            ", less than for going to another seed's minimum. So between seeds d is far too long for the quadratic "
            "form to say what happens to the predictions: the same hidden units in another order would cost no loss."
        )
    else:
        text += "."
    return {"ewc_table": table("from (F there)|to|other seeds|same seed", cells), "ewc_verdict": text}


def penalties(t: Tables) -> dict[tuple[str, str, bool], float]:
    """Mean EWC penalty by the two groups and whether the two minima share their seed."""
    own = t.metrics[(t.metrics["metric"] == "ewc_distance") & (t.metrics["status"] == "ok")]
    runs = t.runs.set_index("run_id")
    to = runs.loc[[told(s)["to"] for s in own["setting"]]]
    pairs = pd.DataFrame({"a": own["group"].to_numpy(), "b": to["group"].to_numpy()})
    pairs = pairs.assign(same=own["seed"].to_numpy() == to["seed"].to_numpy(), value=own["value"].to_numpy())
    return {(a, b, bool(s)): float(v) for (a, b, s), v in pairs.groupby(["a", "b", "same"])["value"].mean().items()}


def verdict(t: Tables) -> dict[str, str]:
    first = [m for m, _ in (*OUTCOMES, *FLATNESS)]
    metrics = dict.fromkeys([*first, *(m for m in t.comparison["metric"] if m != "train_loss")])
    rows = [t.row(m, SHOWN.get(m, "")) for m in metrics]
    same = {name: e.facts["same"] for name, e in registry.REGISTRY["metric"].items() if e.facts["same"]}
    count = statistics.hypotheses(t.comparison[t.comparison["p_holm"].notna()], same).nunique()
    floor = min(1.0, count * statistics.p_floor(*(int(t.row("train_loss")[f"{g}_n"]) for g in ("small", "large"))))
    measures = [r for r in rows if r["metric"] not in (*columns.OUTCOMES, "fisher_rank_deficit", *same)]
    clear, smooth = [r for r in measures if direction(r)], [r for r in measures if "smooth" in claims_of(r)]
    apart = [r for r in smooth if direction(r)]
    said = (
        f"{len(clear)} of {len(measures)} measures (each under one name) tell the groups apart in the setting shown. "
        f"Of the {len(smooth)} that survive any smooth change of coordinates "
        f"{'these do: ' + names(apart) if apart else 'none does'}."
    )
    if any(r["metric"] == "regret_kl_closed_form" for r in apart):
        said += " But the closed form is made of training losses, which are not quite equal here."
    if outcomes := [r for r in t.rows(OUTCOMES) if direction(r)]:
        said += f" Generalization differs, too: {names(outcomes)}."
    else:
        said += (
            " Generalization does not differ clearly. So no measure can be said to predict it here: telling two groups "
            "apart is not enough. See also `small-vs-large`, the example of the [README](../README.md)."
        )
    cells = [(label(r), *means(r), ratio(r), p(r), word(r), ticked(claims_of(r))) for r in rows]
    return {
        "verdict_table": table("measure|small|large|ratio|p|at large batch|survives", cells),
        "verdict": said,
        "hypotheses": str(count),
        "floor": f"{floor:.2g}",
    }


def page(folder: Path = TABLES) -> str:
    """The page for the tables in a folder."""
    t, values = Tables(folder), {}
    for part in (setup, flatness, local_regret, radii, homework, contrast, fisher, verdict):
        values.update(part(t))
    text = Template((HERE / "essay.md.in").read_text("utf-8")).substitute(values)
    return "\n\n".join(wrapped(part) for part in text.split("\n\n"))


def wrapped(part: str) -> str:
    """Prose in lines of 120 characters; tables, lists, code and headings as they are."""
    if part.startswith(("```", "| ", "- ", "#", "!", "<")):
        return part
    end = "\n" * part.endswith("\n")
    return textwrap.fill(part, 120, break_long_words=False, break_on_hyphens=False) + end


def draw(folder: Path) -> None:
    """The page's figures."""
    from landscape_cli import store
    from landscape_cli.report import figures_groups

    runs, metrics = (store.read_table(folder / name) for name in ("runs.csv", "metrics.csv"))
    groups = list(runs["group"].unique())
    key = [(m, told(s).items()) for m, s in zip(metrics["metric"], metrics["setting"].fillna(""), strict=True)]
    with tempfile.TemporaryDirectory() as scratch:
        for figure, shown in FIGURES.items():
            parts = [metrics[[m == name and told(s).items() <= k for m, k in key]] for name, s in shown]
            figures_groups.metric_by_group(pd.concat(parts), runs, groups, Path(scratch) / figure)
        exact = metrics[metrics["metric"] == "regret_exact"]
        figures_groups.regret_by_radius(exact, runs, groups, Path(scratch) / "essay-radius")
        for file in Path(scratch).glob("*.png"):
            shutil.copy(file, HERE / "images" / file.name)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else TABLES)
