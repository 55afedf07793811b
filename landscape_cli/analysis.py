"""Group comparison: statistics on the tables, without a network."""

from collections.abc import Iterable
from math import comb, inf, nan

import numpy as np
from numpy.typing import NDArray
from pandas import DataFrame, Series, to_numeric
from scipy import stats

Values = NDArray[np.float64]

OUTCOMES = ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "loss_gap", "accuracy_gap")
LEVEL = 0.95  # of every interval
ALPHA = 0.05  # p_holm below this is a difference
EXACT_UP_TO = 30  # values in a group: above, the normal approximation is good and the exact count slow


def printable(text: object) -> str:
    """Names and messages as they may be shown: control characters, escape codes and bidi overrides become '?'."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text))


def short(value: float) -> str:
    """A number to 3 significant digits: 1391, 0.00123, 1.2e-7; whole numbers below a million as they are."""
    if not np.isfinite(value):
        return str(value)
    if abs(value) < 1e6 and (abs(value) >= 1e3 or float(value).is_integer()):
        return f"{value:.0f}"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def at_minimum(metrics: DataFrame) -> DataFrame:
    """Rows of the metrics table that describe a minimum: no snapshots, no shared intermediates; setting never missing.

    Args:
        metrics: metrics.csv.
    Returns: a copy with `value` as float and `setting` as text.
    """
    table = metrics.assign(
        setting=metrics["setting"].astype(object).fillna("").astype(str),
        value=to_numeric(metrics["value"], errors="coerce").astype(float),
    )
    snapshot = to_numeric(metrics["epoch"], errors="coerce").notna()
    shared = metrics["metric"].astype(str).str.startswith("_shared:")
    return table.loc[~snapshot & ~shared]


def usable(metrics: DataFrame, runs: DataFrame) -> DataFrame:
    """Rows that statistics may use: measured and finite, at the minimum of a run that ended ok.

    Args:
        metrics: metrics.csv.
        runs: runs.csv; it decides which runs are ok and the group of each.
    Returns: the rows, in their order, with the columns of metrics.csv; `group` is text.
    """
    ok = runs[runs["status"] == "ok"]
    group_of = dict(zip(ok["run_id"], ok["group"].astype(str), strict=True))
    table = at_minimum(metrics)
    table = table.loc[(table["status"] == "ok") & (table["value"].abs() < inf) & table["run_id"].isin(list(group_of))]
    return table.assign(group=table["run_id"].map(group_of))


def t_interval(values: Values) -> tuple[float, float, float]:
    """Mean with its 95 % t-interval.

    Args:
        values: (n,), one a seed.
    Returns: mean, low, high; the interval is nan below 2 values, the mean below 1.
    """
    n = len(values)
    if n == 0:
        return nan, nan, nan
    mean = float(np.mean(values))
    if n == 1:
        return mean, nan, nan
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / n**0.5)
    return mean, mean - half, mean + half


def fieller(first: Values, last: Values) -> tuple[float, float, float]:
    """Ratio of means, last / first, with Fieller's 95 % interval for independent samples of unequal variances.

    The interval is the set of r with |y - r x| <= t se(y - r x); with relative variances a = var(x) / x^2 of the
    mean x of first and b = var(y) / y^2 of the mean y of last, its ends are
    (y/x) (1 +- t sqrt(a + b - t^2 a b)) / (1 - t^2 a).

    Args:
        first: (n1,), the denominator's values.
        last: (n2,), the numerator's values.
    Returns: ratio, low, high; all nan where the means differ in sign or the denominator's interval holds 0, and the
        interval nan where a group has a single value.
    Source: Fieller 1954; Welch-Satterthwaite degrees of freedom at the ratio (coverage: tests/test_analysis.py).
    """
    (x, x_low, x_high), (y, _, _) = t_interval(first), t_interval(last)
    n1, n2 = len(first), len(last)
    if x == 0 or np.sign(x) != np.sign(y) or x_low <= 0 <= x_high:
        return nan, nan, nan
    ratio = y / x
    if n1 < 2 or n2 < 2:
        return ratio, nan, nan
    a, b = float(np.var(first / x, ddof=1)) / n1, float(np.var(last / y, ddof=1)) / n2
    spread = a**2 / (n1 - 1) + b**2 / (n2 - 1)
    t = float(stats.t.ppf((1 + LEVEL) / 2, (a + b) ** 2 / spread if spread > 0 else inf))
    if t**2 * a >= 1:  # fewer degrees of freedom than the denominator alone: the set of r is unbounded
        return nan, nan, nan
    half = t * (a + b - t**2 * a * b) ** 0.5
    return ratio, ratio * (1 - half) / (1 - t**2 * a), ratio * (1 + half) / (1 - t**2 * a)


def cliffs_delta(first: Values, last: Values) -> float:
    """P(last > first) - P(last < first) over all pairs of values; nan if a group is empty."""
    return float(np.mean(np.sign(last[:, None] - first[None, :]))) if len(first) and len(last) else nan


def p_floor(n1: int, n2: int) -> float:
    """The smallest two-sided Mann-Whitney p-value that groups of n1 and n2 values can give: 1.6e-4 at 8 a group."""
    return min(1.0, 2 / comb(n1 + n2, n1))


def mann_whitney(first: Values, last: Values) -> float:
    """Two-sided Mann-Whitney p-value, exact for small groups without ties; nan below 2 values a group.

    Args:
        first: (n1,) values.
        last: (n2,) values.
    Returns: p-value; with ties from the normal approximation, but never below what ranks can give.
    """
    n1, n2 = len(first), len(last)
    if min(n1, n2) < 2:
        return nan
    distinct = len(np.unique(np.concatenate([first, last])))
    if distinct == 1:
        return 1.0
    exact = distinct == n1 + n2 and max(n1, n2) <= EXACT_UP_TO
    p = float(stats.mannwhitneyu(last, first, method="exact" if exact else "asymptotic").pvalue)
    return max(p, p_floor(n1, n2))


def holm(p: Values) -> Values:
    """Holm's step-down correction of p-values for testing several hypotheses.

    Args:
        p: (m,) p-values; nan is no test, is not counted and stays nan.
    Returns: (m,) adjusted p-values; those below alpha hold together at family-wise error alpha.
    Source: Holm 1979.
    """
    p = np.asarray(p, dtype=np.float64)
    adjusted, tests = np.full(p.shape, nan), np.flatnonzero(~np.isnan(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def columns(groups: Iterable[str]) -> list[str]:
    """Columns of comparison.csv for these groups."""
    each = [f"{group}_{what}" for group in groups for what in ("mean", "ci_low", "ci_high", "n")]
    return ["metric", "setting", *each, "ratio", "ratio_low", "ratio_high", "cliffs_delta", "p_value", "p_holm"]


def group_names(comparison: DataFrame | Series) -> list[str]:
    """The groups of a comparison table (or of a row of it), in its order."""
    names = comparison.columns if isinstance(comparison, DataFrame) else comparison.index
    return [str(name).removesuffix("_mean") for name in names if str(name).endswith("_mean")]


def compare(metrics: DataFrame, runs: DataFrame, groups: list[str]) -> DataFrame:
    """Each metric's groups side by side, and the last group against the first.

    Args:
        metrics: metrics.csv; rows that are not ok, of snapshots, or of runs that are not ok, do not count.
        runs: runs.csv.
        groups: their names, in the order of the columns; ratio, cliffs_delta and p-values are last against first.
    Returns: comparison.csv, a row for each (metric, setting) in order of appearance, also where nothing was usable.
    """
    samples = {
        key: part.to_numpy(dtype=np.float64)
        for key, part in usable(metrics, runs).groupby(["metric", "setting", "group"])["value"]
    }
    none = np.empty(0)
    rows: list[list[object]] = []
    for metric, setting in dict.fromkeys(at_minimum(metrics)[["metric", "setting"]].itertuples(index=False, name=None)):
        values = [samples.get((metric, setting, group), none) for group in groups]
        first, last = (values[0], values[-1]) if len(values) > 1 else (none, none)
        each = [cell for v in values for cell in (*t_interval(v), len(v))]
        tests = (*fieller(first, last), cliffs_delta(first, last), mann_whitney(first, last), nan)
        rows.append([metric, setting, *each, *tests])
    table = DataFrame(rows, columns=columns(groups))
    return table.assign(p_holm=holm(table["p_value"].to_numpy(dtype=np.float64)))


def verdict(row: Series) -> str:
    """What a row of comparison.csv says, as a short phrase: 'large 3.2x (2.9 to 3.5)' or 'no clear difference'.

    Args:
        row: a row of comparison.csv, with or without its p-value.
    Returns: the phrase; a difference is one with p_holm below 0.05.
    """
    groups = group_names(row)
    if len(groups) < 2:
        return ""
    if np.isnan(row["p_holm"]):
        return "too few values"
    if not row["p_holm"] < ALPHA:
        return "no clear difference"
    if np.isnan(row["ratio"]):
        return f"{groups[-1]} {'higher' if row['cliffs_delta'] > 0 else 'lower'}"
    return f"{groups[-1]} {short(row['ratio'])}x ({short(row['ratio_low'])} to {short(row['ratio_high'])})"
