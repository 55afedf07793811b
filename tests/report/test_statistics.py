"""Group comparison: each statistic against an oracle, and a wrong variant that the same test must reject."""

from itertools import product
from math import comb, inf, isnan, nan

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers, lists
from scipy import stats

from landscape_cli.report import statistics

numbers = floats(-1e3, 1e3).map(lambda v: round(v, 2))


def runs_of(groups: dict[str, int], **status: str) -> pd.DataFrame:
    rows = [(f"{group}-s{seed}", group, seed) for group, n in groups.items() for seed in range(n)]
    table = pd.DataFrame(rows, columns=["run_id", "group", "seed"])
    return table.assign(status=[status.get(run_id.replace("-", "_"), "ok") for run_id in table["run_id"]])


def rows_of(runs: pd.DataFrame, metric: str, values: list[float], **more: object) -> pd.DataFrame:
    cells = {"epoch": nan, "metric": metric, "setting": "", "value": values, "status": "ok"} | more
    return runs[["run_id", "group", "seed"]].assign(**cells)


@given(lists(numbers, min_size=2, max_size=12).filter(lambda v: len(set(v)) > 1))
def test_t_interval_is_scipys(values: list[float]) -> None:
    x = np.array(values)
    mean, low, high = statistics.t_interval(x)
    expected = stats.t.interval(0.95, len(x) - 1, loc=x.mean(), scale=stats.sem(x))
    np.testing.assert_allclose((mean, low, high), (x.mean(), *expected), rtol=1e-9, atol=1e-9)


def test_one_value_has_a_mean_and_no_interval_and_none_has_nothing() -> None:
    assert str(statistics.t_interval(np.array([2.0]))) == "(2.0, nan, nan)"
    assert str(statistics.t_interval(np.empty(0))) == "(nan, nan, nan)"


@pytest.mark.parametrize(("n1", "n2", "sd1", "sd2"), [(8, 8, 0.25, 0.4), (5, 9, 0.2, 0.05), (12, 4, 0.1, 0.9)])
def test_fieller_covers_the_true_ratio_95_times_in_100(n1: int, n2: int, sd1: float, sd2: float) -> None:
    rng = np.random.default_rng(1)
    x, y = 1 + sd1 * rng.standard_normal((2000, n1)), 3 + sd2 * rng.standard_normal((2000, n2))
    r, low, high = np.array([statistics.fieller(*pair) for pair in zip(x, y, strict=True)]).T
    np.testing.assert_allclose(r, y.mean(1) / x.mean(1))
    assert not np.isnan(low).any()
    assert 0.935 < ((low <= 3) & (high >= 3)).mean() < 0.97
    half = 1.96 * y.std(1, ddof=1) / n2**0.5 / x.mean(1)  # wrong: takes the denominator for a constant
    assert (np.abs(r - 3) <= half).mean() < 0.92


def test_fiellers_ends_solve_its_equation() -> None:
    """|y - r x| = t se(y - r x) at both ends, written without the closed form."""
    x, y = np.array([1.0, 1.4, 0.9, 1.1]), np.array([3.0, 2.5, 3.6, 3.3, 2.9])
    r, *ends = statistics.fieller(x, y)
    v1, v2 = x.var(ddof=1) / 4, y.var(ddof=1) / 5
    df = (v2 + r**2 * v1) ** 2 / (v2**2 / 4 + (r**2 * v1) ** 2 / 3)
    for end in ends:
        gap = abs(y.mean() - end * x.mean()) / (v2 + end**2 * v1) ** 0.5
        assert gap == pytest.approx(stats.t.ppf(0.975, df), rel=1e-12)
    assert ends[0] < r < ends[1]


@pytest.mark.parametrize(
    ("first", "last", "empty"),
    [
        ([1, 2, 3], [-1, -2, -3], "all"),  # means differ in sign
        ([-1, 2, 0.1], [5, 6, 7], "all"),  # the denominator's interval holds 0
        ([0, 0], [0, 0], "all"),
        ([1, 2, 3], [0, 0, 0], "all"),
        ([2.0], [4.0, 5.0], "interval"),
        ([], [1, 2], "all"),
        ([5, 5], [10, 10], "none"),
        ([-5, -5.1], [-10, -10.1], "none"),
        ([1e-200, 1.1e-200, 0.9e-200], [2e-200, 2.1e-200, 2.2e-200], "none"),  # squares would underflow
        ([1, 1.01, 0.99] * 20, [10, 90], "none"),  # few degrees of freedom come from the numerator
    ],
)
def test_ratio_is_empty_exactly_where_it_means_nothing(first: list[float], last: list[float], empty: str) -> None:
    ratio, low, high = statistics.fieller(np.array(first, float), np.array(last, float))
    assert (isnan(ratio), isnan(low), isnan(high)) == (empty == "all", empty != "none", empty != "none")


@given(lists(integers(0, 5), min_size=1, max_size=9), lists(integers(0, 5), min_size=1, max_size=9))
def test_cliffs_delta_is_the_count_over_pairs(first: list[int], last: list[int]) -> None:
    signs = [(b > a) - (b < a) for a, b in product(first, last)]
    assert statistics.cliffs_delta(np.array(first), np.array(last)) == pytest.approx(sum(signs) / len(signs))


@given(lists(integers(0, 1000), min_size=4, max_size=9, unique=True), integers(2, 7))
def test_mann_whitney_counts_rank_assignments(values: list[int], n1: int) -> None:
    """Exact p by enumeration of all ways to deal the ranks."""
    n1 = min(n1, len(values) - 2)
    first, last = np.array(values[:n1], float), np.array(values[n1:], float)
    ranks, n = stats.rankdata(values), len(values)
    center = n1 * (n + 1) / 2
    sums = [
        sum(r for r, take in zip(ranks, picks, strict=True) if take)
        for picks in product([0, 1], repeat=n)
        if sum(picks) == n1
    ]
    extreme = np.abs(np.array(sums) - center) >= abs(ranks[:n1].sum() - center) - 1e-9
    assert statistics.mann_whitney(first, last) == pytest.approx(extreme.mean())


def test_floor_of_p_is_reached_by_separate_groups_and_never_undercut() -> None:
    low, high = np.arange(8.0), 100 + np.arange(8.0)
    assert statistics.p_floor(8, 8) == pytest.approx(2 / comb(16, 8)) == pytest.approx(1.554e-4, rel=1e-3)
    assert statistics.mann_whitney(low, high) == pytest.approx(statistics.p_floor(8, 8))
    tied = statistics.mann_whitney(np.array([1.0, 1.0]), np.array([2.0, 2.0]))
    assert tied >= statistics.p_floor(2, 2) == pytest.approx(1 / 3)
    assert statistics.mann_whitney(np.ones(8), np.ones(8)) == 1
    assert isnan(statistics.mann_whitney(np.ones(1), np.ones(8)))
    assert statistics.p_floor(1, 1) == 1


def test_holm_by_hand() -> None:
    """4 tests: 0.01 x 4, 0.02 x 3, then 0.03 x 2 = 0.06 ties, 0.4 x 1; nan is not counted."""
    adjusted = statistics.holm(np.array([0.02, nan, 0.4, 0.01, 0.03]))
    np.testing.assert_allclose(adjusted, [0.06, nan, 0.4, 0.04, 0.06])
    np.testing.assert_allclose(statistics.holm(np.array([0.9, 0.8])), [1, 1])  # 1.6 is cut, and order kept
    np.testing.assert_allclose(statistics.holm(np.array([0.01, 0.011])), [0.02, 0.02])  # monotone: 0.011 rises
    assert len(statistics.holm(np.empty(0))) == 0


def test_compare_uses_only_ok_values_of_ok_runs_at_the_minimum() -> None:
    runs = runs_of({"small": 3, "large": 3}, large_s2="diverged")
    clean = rows_of(runs, "top", [1.9, 2.0, 2.1, 8.0, 9.0, 1e9])
    noise = [
        rows_of(runs, "top", [7e7] * 6, epoch=5),
        rows_of(runs, "_shared:gradients", [nan] * 6),
        rows_of(runs, "trace", [4.0, 5.0, inf, 6.0, 7.0, 8.0], status=["ok", "undefined", *["ok"] * 4]),
        rows_of(runs, "never", [nan] * 6, status="undefined"),
    ]
    table = statistics.compare(pd.concat([clean, *noise]), runs, ["small", "large"])
    assert list(table["metric"]) == ["top", "trace", "never"]
    top, trace, never = (row for _, row in table.iterrows())
    assert (top["small_mean"], top["small_n"], top["large_mean"], top["large_n"]) == (2.0, 3, 8.5, 2)
    assert top["ratio"] == 4.25 and top["cliffs_delta"] == 1
    assert top["p_value"] == pytest.approx(0.2) == top["p_holm"]  # the only test: trace has one value in small
    assert (trace["small_mean"], trace["small_n"], trace["large_n"]) == (4.0, 1, 2) and isnan(trace["small_ci_low"])
    assert isnan(trace["p_value"]) and isnan(trace["p_holm"])
    assert (never["small_n"], never["large_n"]) == (0, 0) and isnan(never["small_mean"])


def test_columns_follow_the_contract_and_groups_the_given_order() -> None:
    runs = runs_of({"b": 2, "a": 2, "c": 2})
    table = statistics.compare(rows_of(runs, "m", [1, 2, 3, 3.1, 5, 6]), runs, ["a", "b", "c"])
    each = [f"{g}_{w}" for g in "abc" for w in ("mean", "ci_low", "ci_high", "n")]
    tail = ["ratio", "ratio_low", "ratio_high", "cliffs_delta", "p_value", "p_holm"]
    assert list(table.columns) == ["metric", "setting", *each, *tail]
    assert table["ratio"][0] == 5.5 / 3.05  # last over first: c / a
    assert statistics.group_names(table) == ["a", "b", "c"] == statistics.group_names(table.iloc[0])


def test_settings_tell_rows_apart_and_tables_that_went_through_csv_give_the_same(tmp_path) -> None:
    runs = runs_of({"10": 3, "1000": 3})
    metrics = pd.concat(
        [
            rows_of(runs, "r", [1, 2, 3, 4, 5, 6.5], setting=s, value=[k, 2, 3, 4, 5, 6.5])
            for k, s in enumerate(["", "m=1"])
        ]
    )
    direct = statistics.compare(metrics, runs, ["10", "1000"])
    assert list(direct["setting"]) == ["", "m=1"] and direct["10_mean"][0] != direct["10_mean"][1]
    metrics.to_csv(tmp_path / "m.csv", index=False)
    runs.to_csv(tmp_path / "r.csv", index=False)
    read = statistics.compare(pd.read_csv(tmp_path / "m.csv"), pd.read_csv(tmp_path / "r.csv"), ["10", "1000"])
    pd.testing.assert_frame_equal(direct, read, check_dtype=False)


@pytest.mark.parametrize("groups", [[], ["only"]])
def test_without_two_groups_there_is_no_test(groups: list[str]) -> None:
    runs = runs_of({"only": 3})
    table = statistics.compare(rows_of(runs, "m", [1, 2, 3]), runs, groups)
    assert list(table["metric"]) == ["m"] and table["p_value"].isna().all() and table["ratio"].isna().all()


def test_no_rows_give_an_empty_table() -> None:
    runs = runs_of({"a": 1, "b": 1})
    assert statistics.compare(rows_of(runs, "m", [1, 2]).iloc[:0], runs, ["a", "b"]).shape == (0, 16)


def test_a_metric_under_several_names_is_one_hypothesis_for_holm() -> None:
    """3 tests with a p, not 5: by hand 0.01 x 3, then 0.012 x 2 and 0.02 x 1 below it; c has none."""
    names = ["noise", "diversity", "coherence", "coherence", "a", "b", "c"]
    table = pd.DataFrame({"metric": names})
    p = np.array([0.011, nan, 0.01, 0.3, 0.012, 0.02, nan])
    same = {"diversity": "noise", "coherence": "noise", "unmeasured": "b", "c": "c2"}
    label = statistics.hypotheses(table, same)
    assert label.nunique() == 4 and label[:4].nunique() == 1 and "unmeasured" not in set(label)
    adjusted = statistics.holm_once(p, label)
    np.testing.assert_allclose(adjusted, [0.03, nan, 0.03, 0.3, 0.03, 0.03, nan])  # 0.3: never below its own
    apart = statistics.holm_once(p, statistics.hypotheses(table, {}))
    np.testing.assert_allclose(apart, statistics.holm(p))
    assert apart[2] == pytest.approx(0.05)  # teeth: 5 tests where every name counts
    assert statistics.holm_once(np.empty(0), pd.Series([], dtype=object)).shape == (0,)


def test_compare_counts_names_once_and_keeps_every_row() -> None:
    runs = runs_of({"small": 4, "large": 4})
    rising = [1.0, 2, 3, 4, 5, 6, 7, 8]
    metrics = pd.concat(
        [
            rows_of(runs, "noise", rising),
            rows_of(runs, "inverse", [1 / v for v in rising], setting="m=1"),
            rows_of(runs, "inverse", [3 / v for v in rising], setting="m=10"),
            rows_of(runs, "other", rising[::-1]),
        ]
    )
    p = statistics.p_floor(4, 4)
    once = statistics.compare(metrics, runs, ["small", "large"], {"inverse": "noise"})
    assert list(once["metric"]) == ["noise", "inverse", "inverse", "other"]
    np.testing.assert_allclose(once["p_value"], p)
    np.testing.assert_allclose(once["p_holm"], 2 * p)
    np.testing.assert_allclose(statistics.compare(metrics, runs, ["small", "large"])["p_holm"], 4 * p)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("", ""),
        ("minibatch_size=10", "minibatch_size=10"),
        ("to=r1", "to=small"),
        ("a=1;to=r1;z=2", "a=1;to=small;z=2"),
        ("to=r2", "to=\\frac{ $x$ = 1, 漢字"),
        ("a=1;to=r3", 'a=1;to="x;to=r1"'),
        ("to=r4;z=1", 'to="5\\U00000022";z=1'),
        ('text="a;to=r1";to=r1', 'text="a;to=r1";to=small'),
        ("onto=r1", "onto=r1"),
        ("to=gone", None),
    ],
)
def test_the_other_minimum_of_a_pair_is_named_by_its_group(setting: str, expected: str | None) -> None:
    group_of = {"r1": "small", "r2": "\\frac{ $x$ = 1, 漢字", "r3": "x;to=r1", "r4": '5"'}
    assert statistics.towards(setting, group_of) == expected


def test_told_reads_settings_and_keeps_the_value_of_the_row() -> None:
    assert statistics.told("") == {}
    assert statistics.told('radius=0.01;radius=[0.01, 0.1];to="x;y=1"') == {"radius": "0.01", "to": '"x;y=1"'}


def test_pairs_of_minima_are_compared_by_the_group_of_the_other() -> None:
    """Distances of 2 + 2 runs and one that diverged: a row a group, in which a run's distances are averaged."""
    runs = runs_of({"small": 2, "large": 3}, large_s2="diverged")
    ids, groups = runs["run_id"].tolist(), ["small", "large"]
    distance = {(a, b): 10.0 * i + k for i, a in enumerate(ids) for k, b in enumerate(ids) if a != b}
    pairs = [
        rows_of(runs[runs["run_id"] == a], "ewc", [v], setting=f"damping=1;to={b}") for (a, b), v in distance.items()
    ]
    gone = rows_of(runs[:1], "ewc", [1e9], setting="damping=1;to=small-s9")
    table = statistics.compare(pd.concat([*pairs, gone, rows_of(runs, "m", [1, 2, 3, 4, 5])]), runs, groups)
    near, far, plain = (row for _, row in table.iterrows())
    assert [near["setting"], far["setting"], plain["setting"]] == ["damping=1;to=small", "damping=1;to=large", ""]
    assert (near["small_mean"], near["small_n"]) == (np.mean([1, 10]), 2)  # each has one other of its own group
    assert (near["large_mean"], near["large_n"]) == (np.mean([20, 21, 30, 31]), 2)
    assert (far["small_mean"], far["small_n"]) == (np.mean([2, 3, 12, 13]), 2)  # 4, 14: towards the diverged run
    assert (far["large_mean"], far["large_n"]) == (np.mean([23, 32]), 2)
    assert (plain["small_mean"], plain["large_mean"]) == (1.5, 3.5)


def test_a_curve_takes_two_radii_above_0() -> None:
    runs = runs_of({"small": 1})
    settings = {
        "exact": ["radius=0", "radius=1.0e-05", "radius=0.1;radius=[0.1, 1]", "", "radius=x", "radius=-1"],
        "kl": ["over=all;radius=0", "over=all;radius=0.1", "a=1;radius=0.1;z=2", "a=1;radius=1;z=2"],
        "other": ["radius=1", "radius=2"],
    }
    table = pd.concat([rows_of(runs, m, [1.0], setting=s) for m, each in settings.items() for s in each])
    found = statistics.at_radii(statistics.usable(table, runs), ["exact", "kl"])
    rows = list(found[["metric", "setting", "radius"]].itertuples(index=False, name=None))
    assert rows[:3] == [("exact", "", 0), ("exact", "", 1e-5), ("exact", "", 0.1)]
    assert rows[3:] == [("kl", "a=1;z=2", 0.1), ("kl", "a=1;z=2", 1)]


def test_printable_disarms_terminal_codes_and_bidi_overrides() -> None:
    assert statistics.printable("a\x1b[31mb\x00\u202ec\ud800 é $x$\n") == "a?[31mb??c? é $x$\n"
