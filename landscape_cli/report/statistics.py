"""Group comparison: statistics on the tables, without a network."""

import re
from collections.abc import Iterable, Mapping
from math import ceil, comb, inf, nan
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from pandas import DataFrame, Series, to_numeric
from scipy import stats

from landscape_cli.config.yaml_tree import flow

Values = NDArray[np.float64]

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # p_holm below this is a difference
EXACT_UP_TO = 30  # values in a group: above, the normal approximation is good and the exact count slow
NO_NAMES: Mapping[str, str] = MappingProxyType({})
PART = re.compile(r'(?:"[^"]*"|[^;])+')  # of a setting; text in quotes may hold a semicolon


def printable(text: object) -> str:
    """Names and messages as they may be shown: control characters, escape codes and bidi overrides become '?'."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text))


def shorten(text: str, limit: int) -> str:
    """Text of at most limit characters: its head and tail around an ellipsis."""
    text = printable(text).replace("\n", " ")
    head = ceil((limit - 1) / 2)
    return text if len(text) <= limit else f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def short(value: float) -> str:
    """A number to 3 significant digits: 1391, 0.00123, 1.2e-7; whole numbers below a million as they are."""
    if not np.isfinite(value):
        return str(value)
    if abs(value) < 1e6 and (abs(value) >= 1e3 or float(value).is_integer()):
        return f"{value:.0f}"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def told(setting: str) -> dict[str, str]:
    """What a setting says, name -> value; of a name that comes twice (a list, and its value in this row) the first."""
    parts: dict[str, str] = {}
    for part in PART.findall(setting):
        name, _, value = part.partition("=")
        parts.setdefault(name, value)
    return parts


def towards(setting: str, group_of: Mapping[str, str]) -> str | None:
    """A setting whose part `to=<run_id>` names the run's group instead, in quotes if that holds `;` or a quote.

    Args:
        setting: parts `name=value`, joined by `;`.
        group_of: run id -> group.
    Returns: the setting, as it is if it has no such part; None if the run is not known.
    """
    parts = PART.findall(setting)
    to = [part.removeprefix("to=") for part in parts if part.startswith("to=")]
    if not to:
        return setting
    if to[0] not in group_of:
        return None
    group = group_of[to[0]]
    name = flow(group) if ";" in group or '"' in group else group
    return ";".join(f"to={name}" if part.startswith("to=") else part for part in parts)


def collapsed(table: DataFrame, runs: DataFrame) -> DataFrame:
    """Rows of a pair of minima (`to=<run_id>` in the setting) named by the group of the other: `to=<group>`.

    Args:
        table: rows of metrics.csv.
        runs: run_id and group; rows towards a run that is not there are left out.
    Returns: a copy, in which a (run, metric, setting) of pairs may have several rows.
    """
    group_of = dict(zip(runs["run_id"], runs["group"].astype(str), strict=True))
    new = {setting: towards(setting, group_of) for setting in table["setting"].unique()}
    return table.assign(setting=table["setting"].map(new)).dropna(subset="setting")


def at_minimum(metrics: DataFrame, runs: DataFrame) -> DataFrame:
    """Rows of the metrics table that describe a minimum: no snapshots, no shared intermediates; setting never missing.

    Args:
        metrics: metrics.csv.
        runs: runs.csv, or those of its rows that a pair may lead to.
    Returns: a copy with `value` as float and `setting` as text, pairs collapsed.
    """
    table = _measured(metrics)
    return collapsed(table.loc[table["epoch"].isna()], runs)


def _measured(metrics: DataFrame) -> DataFrame:
    """A copy without shared intermediates; `value` and `epoch` as floats, `setting` as text."""
    table = metrics.loc[~metrics["metric"].astype(str).str.startswith("_shared:")]
    return table.assign(
        setting=table["setting"].astype(object).fillna("").astype(str),
        value=to_numeric(table["value"], errors="coerce").astype(float),
        epoch=to_numeric(table["epoch"], errors="coerce").astype(float),
    )


def along(metrics: DataFrame, runs: DataFrame) -> DataFrame:
    """Curves along training: what was measured at snapshots, and at the minimum, which stands where the run ended.

    Args:
        metrics: metrics.csv.
        runs: runs.csv.
    Returns: rows that are ok and finite, of every (metric, setting) that has a snapshot, by epoch within a run, one at
        each; `epoch` and `value` as floats, `group` as text; what a run has towards a group is a single row, the mean.
    """
    table = collapsed(_measured(metrics), runs)
    table = table.loc[(table["status"] == "ok") & (table["value"].abs() < inf)]
    on_the_way = set(table.loc[table["epoch"].notna(), ["metric", "setting"]].itertuples(index=False, name=None))
    table = table.loc[[key in on_the_way for key in zip(table["metric"], table["setting"], strict=True)]]
    ends, groups = (dict(zip(runs["run_id"], runs[name], strict=True)) for name in ("epochs", "group"))
    end = to_numeric(table["run_id"].map(ends), errors="coerce").astype(float)
    table = table.assign(epoch=table["epoch"].fillna(end), group=table["run_id"].map(groups).astype(str))
    key = ["run_id", "metric", "setting", "epoch"]
    mean = table.groupby(key)["value"].transform("mean")
    table = table.assign(value=mean).dropna(subset=["epoch", "value"]).drop_duplicates(key)
    place = table.groupby(key[:3], sort=False).ngroup()  # runs and metrics stay in their order
    return table.assign(_place=place).sort_values(["_place", "epoch"], kind="stable").drop(columns="_place")


def usable(metrics: DataFrame, runs: DataFrame) -> DataFrame:
    """Rows that statistics may use: measured and finite, at the minimum of a run that ended ok.

    Args:
        metrics: metrics.csv.
        runs: runs.csv; it decides which runs are ok and the group of each.
    Returns: the rows, in their order, with the columns of metrics.csv; `group` is text; what a run has towards the
        runs of one group is a single row, the mean.
    """
    ok = runs[runs["status"] == "ok"]
    group_of = dict(zip(ok["run_id"], ok["group"].astype(str), strict=True))
    table = at_minimum(metrics, ok)
    table = table.loc[(table["status"] == "ok") & (table["value"].abs() < inf) & table["run_id"].isin(list(group_of))]
    key = ["run_id", "metric", "setting"]
    mean = table.groupby(key)["value"].transform("mean")
    return table.assign(group=table["run_id"].map(group_of), value=mean).drop_duplicates(key)


def at_radii(table: DataFrame, metrics: Iterable[str]) -> DataFrame:
    """Rows of metrics at a radius, where there are two radii or more above 0.

    Args:
        table: usable rows of metrics.csv.
        metrics: names; radius=0 in their setting is the limit.
    Returns: a copy with `radius` as a number, and `setting` without it.
    """
    table = table.loc[table["metric"].isin(list(metrics))]
    parts = [told(setting) for setting in table["setting"]]
    radius = np.array([part.pop("radius", "nan") for part in parts])
    rest = [";".join(f"{name}={value}" for name, value in part.items()) for part in parts]
    table = table.assign(setting=rest, radius=to_numeric(radius, errors="coerce").astype(float))
    table = table.loc[table["radius"] >= 0]
    above = table.assign(radius=table["radius"].where(table["radius"] > 0))
    return table.loc[above.groupby(["metric", "setting"])["radius"].transform("nunique") > 1]


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


def hypotheses(comparison: DataFrame, same: Mapping[str, str]) -> Series:
    """A label for each row of a comparison table: rows with equal labels are one hypothesis under several names.

    Args:
        comparison: comparison.csv.
        same: metric -> the metric of which it is a monotone function.
    Returns: text; the name of that metric for its rows and for those of its functions, else the row's own number.
    """
    metrics = comparison["metric"].tolist()
    named = {metric: same[metric] for metric in metrics if metric in same}
    root = named | {metric: metric for metric in named.values()}
    return Series([root.get(metric, str(i)) for i, metric in enumerate(metrics)], comparison.index, dtype=object)


def holm_once(p: Values, label: Series) -> Values:
    """Holm's correction where rows of one label count once, with the smallest p-value among them.

    Args:
        p: (m,) p-values; nan stays nan.
        label: (m,), of `hypotheses`.
    Returns: (m,) adjusted p-values, that of its label for each row, but never below its own p-value.
    """
    labels, which = np.unique(label.to_numpy(dtype=str), return_inverse=True)
    least = np.full(len(labels), nan)
    np.fmin.at(least, which, p)
    return np.maximum(p, holm(least)[which])


def columns(groups: Iterable[str]) -> list[str]:
    """Columns of comparison.csv for these groups."""
    each = [f"{group}_{what}" for group in groups for what in ("mean", "ci_low", "ci_high", "n")]
    return ["metric", "setting", *each, "ratio", "ratio_low", "ratio_high", "cliffs_delta", "p_value", "p_holm"]


def group_names(comparison: DataFrame | Series) -> list[str]:
    """The groups of a comparison table (or of a row of it), in its order."""
    names = comparison.columns if isinstance(comparison, DataFrame) else comparison.index
    return [str(name).removesuffix("_mean") for name in names if str(name).endswith("_mean")]


def compare(metrics: DataFrame, runs: DataFrame, groups: list[str], same: Mapping[str, str] = NO_NAMES) -> DataFrame:
    """Each metric's groups side by side, and the last group against the first.

    Args:
        metrics: metrics.csv; rows that are not ok, of snapshots, or of runs that are not ok, do not count.
        runs: runs.csv.
        groups: their names, in the order of the columns; ratio, cliffs_delta and p-values are last against first.
        same: metric -> the metric of which it is a monotone function: Holm counts the rows of both once.
    Returns: comparison.csv, a row for each (metric, setting) in order of appearance, also where nothing was usable.
    """
    samples = {
        key: part.to_numpy(dtype=np.float64)
        for key, part in usable(metrics, runs).groupby(["metric", "setting", "group"])["value"]
    }
    none = np.empty(0)
    rows: list[list[object]] = []
    for metric, setting in dict.fromkeys(
        at_minimum(metrics, runs)[["metric", "setting"]].itertuples(index=False, name=None)
    ):
        values = [samples.get((metric, setting, group), none) for group in groups]
        first, last = (values[0], values[-1]) if len(values) > 1 else (none, none)
        each = [cell for v in values for cell in (*t_interval(v), len(v))]
        tests = (*fieller(first, last), cliffs_delta(first, last), mann_whitney(first, last), nan)
        rows.append([metric, setting, *each, *tests])
    table = DataFrame(rows, columns=columns(groups))
    return table.assign(p_holm=holm_once(table["p_value"].to_numpy(dtype=np.float64), hypotheses(table, same)))
