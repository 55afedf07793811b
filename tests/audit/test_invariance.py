"""The audit: claims hold on every net, values are those of dense mathematics, and a false claim is caught."""

from __future__ import annotations

import copy
import gc
import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from math import inf, isfinite, nan
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Ge
from conftest import TINY, Call, build_module, yaml_of
from helpers import Residual, at_of, dense, pairs, plain_logits, vector
from pandas import DataFrame
from test_every_metric import METRICS, SLOW, settings_of
from torch import Tensor, nn
from torch.testing import assert_close

from landscape_cli import network, registry
from landscape_cli.audit import claims as verdicts
from landscape_cli.audit import curves, invariance, transforms
from landscape_cli.audit import transforms as rp
from landscape_cli.cli import print_audit
from landscape_cli.config import Measurement
from landscape_cli.curvature import sample_gradients
from landscape_cli.metrics.point import Estimate, Point, exact
from landscape_cli.network.channels import channel_groups
from landscape_cli.network.layers import Pass
from landscape_cli.registry import REGISTRY, metric
from landscape_cli.registry.errors import Fault
from landscape_cli.store import tables

f64, N, SHAPES = torch.float64, 60, {"mlp": (5,), "cnn": (2, 8, 8), "residual": (2, 4, 4), "tanh": (5,)}


def _module(name: str) -> nn.Module:
    if name == "residual":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Residual()
    spec: dict[str, Any] = {"name": "cnn", "channels": [3, 4], "batchnorm": True} if name == "cnn" else {"name": "mlp"}
    spec |= {"hidden": [6, 5]} if spec["name"] == "mlp" else {}
    return build_module(spec | ({"activation": "tanh"} if name == "tanh" else {}), SHAPES[name], 3, 0)


@cache
def trained(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A net after some steps of gradient descent, BatchNorm at the statistics of its training set."""
    registry.load_plugins([])
    rng, shape = torch.Generator().manual_seed(1), SHAPES[name]
    x = torch.randn(N, *shape, generator=rng, dtype=f64)
    y = (x.flatten(1)[:, :3] + 0.3 * torch.randn(N, 3, generator=rng, dtype=f64)).argmax(1)
    net = _module(name).double().eval()
    for b in (b for n, b in net.named_buffers() if n.endswith("running_var")):
        b.copy_(0.5 + torch.rand(b.shape, generator=rng, dtype=f64))
    for _ in range(200):
        loss = nn.functional.cross_entropy(net(x), y)
        grads = torch.autograd.grad(loss, list(net.parameters()))
        for p, g in zip(net.parameters(), grads, strict=True):
            p.data -= 0.2 * g
    return net, x, y


def minimum(name: str) -> tuple[Point, rp.Minima]:
    net, x, y = trained(name)
    point = at_of([copy.deepcopy(net)], x, y, (x + 0.2 * torch.sin(7 * x), y))
    point.initial, point.peers = 0.9 * point.theta, {"other": 1.1 * point.theta[0]}
    return point, rp.Minima(point.train.network, point.train.like, point.train.buffers, SHAPES[name])


def audited(name: str, wanted: list[Measurement]) -> DataFrame:
    rows, _ = invariance.audit(*minimum(name), wanted)
    return tables.invariance_table([{"run_id": "a", **row} for row in rows])


def everything() -> list[Measurement]:
    """Every metric but those of balls, whose solvers are slow, at cheap settings that hold for 60 samples."""
    cheap = {"minibatch_size": 5, "inputs": 40, "samples": 20}
    rows = [(name, own | {k: v for k, v in cheap.items() if k in own}) for name in METRICS for own in settings_of(name)]
    return [row for i, row in enumerate(rows) if row not in rows[:i] and row[0] not in SLOW | {"contrast_sharpness"}]


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_every_claim_holds_and_what_holds_is_claimed(name: str) -> None:
    found = audited(name, everything())
    bad = found[found["verdict"].isin(("broken", "unresolved"))]
    assert not len(bad), bad[["metric", "setting", "transform", "before", "after"]].to_string()
    assert (found["verdict"] == "holds").sum() > 200
    assert [line for line in invariance.unclaimed(found) if not line.startswith(ABOVE[name])] == []
    moved = found[(found["verdict"] == "never claimed") & (found["ratio"] - 1).abs().gt(1e-3)]
    for metric_name, own in found.groupby("metric"):
        silent = set(own["claim"]) == {""} and bool(own["before"].notna().any())
        assert not silent or metric_name in set(moved["metric"]), f"{metric_name} claims nothing and nothing moves it"


# where there is no convolution, kernels are single entries, which any elementwise change of coordinates scales
ABOVE: dict[str, tuple[str, ...]] = {"mlp": ("contrast_f",), "cnn": ()}


@cache
def value(name: str, what: str, **own: Any) -> Any:
    """before, after: of one metric, by transform."""
    settings = REGISTRY["metric"][what].settings(**own).model_dump()
    found = audited(name, [(what, settings)])
    return {(r["transform"], r["strength"]): (r["before"], r["after"]) for r in found.to_dict("records")}


def in_coordinates(name: str, transform: str, strength: float) -> Callable[[Tensor], Tensor] | None:
    """theta as a function of the coordinates, for the transforms that change those; none for the others."""
    square = vector(trained(name)[0]).square().mean()
    if transform == "smooth_cubic":
        return lambda phi: phi + phi**3 / square
    if transform == "smooth_sinh":
        return lambda phi: torch.sinh(phi / square.sqrt()) * square.sqrt()
    return (lambda phi: phi / strength) if transform == "global_scale" else None


def brute(name: str, case: invariance.Case | None) -> dict[str, float]:
    """Metrics by dense matrices, at the minimum or its image, of PyTorch's own module."""
    net, x, y = copy.deepcopy(trained(name)[0]), *trained(name)[1:]
    h = None
    if case is not None and case.moved is not None:
        h = in_coordinates(name, case.transform, case.strength)
        if h is None:
            minima = case.moved.minima
            net.load_state_dict({n: t[0] for n, t in (minima.params | minima.buffers).items()})
        at = torch.cat([t[0].flatten() for t in case.moved.minima.params.values()])
    else:
        at = vector(net)
    logits = plain_logits(net, x)
    chart = h or (lambda theta: theta)

    def losses(theta: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits(chart(theta)), y, reduction="none")

    H = torch.autograd.functional.hessian(lambda t: losses(t).mean(), at)
    g = torch.autograd.functional.jacobian(losses, at)
    D = torch.autograd.functional.jacobian(chart, at)
    assert_close(logits(chart(at)), plain_logits(trained(name)[0], x)(vector(trained(name)[0])), rtol=1e-9, atol=1e-9)
    own = dense(net, x, y) if h is None else None
    dual = dense(trained(name)[0], x, y).dual if own is None else own.dual
    z, p = logits(chart(at)), torch.softmax(logits(chart(at)), 1)
    J = torch.autograd.functional.jacobian(lambda t: logits(chart(t)), at)
    Jt = J @ at
    rao = (p * Jt.square()).sum(1) - (p * Jt).sum(1).square()
    assert D.shape == H.shape and z.shape == p.shape
    return {
        "hessian_top": float(torch.linalg.eigvalsh(H)[-1]),
        "hessian_trace": float(H.trace()),
        "fisher_trace": float(g.square().sum(1).mean()),
        "regret": pairs(g @ g.T),
        "weight_norm": float(at.norm()),
        "fisher_rao": float(rao.mean()),
        "regret_kl": pairs(dual @ dual.T),
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "fisher_trace": {"minibatch_size": 1},
    "regret": {"minibatch_size": 1},
    "regret_kl": {"minibatch_size": 1, "samples": N, "over": "minibatches", "inputs": N},
}


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "tanh"])
def test_values_before_and_after_are_those_of_dense_matrices(name: str) -> None:
    cases = {(c.transform, c.strength): c for c in invariance.cases(minimum(name)[1])}
    function_kept = [k for k, c in cases.items() if c.moved and k[0] != "logit_scale"]
    assert len(function_kept) >= 4
    for key in function_kept:
        due, start = brute(name, cases[key]), brute(name, None)
        for what in due:
            before, after = value(name, what, **SETTINGS.get(what, {}))[key]
            assert before == pytest.approx(start[what], rel=1e-6), (what, key)
            assert after == pytest.approx(due[what], rel=1e-6), (what, key)


@pytest.fixture
def toy() -> Iterator[Callable[..., str]]:
    """Registers a metric for one test."""
    made: list[str] = []

    def register(function: Callable[[Point], Estimate], invariant: str) -> str:
        function.__name__ = f"toy_{len(made)}"
        metric(invariant=invariant, source="a test")(function)
        made.append(function.__name__)
        return function.__name__

    yield register
    for name in made:
        del REGISTRY["metric"][name]


def test_a_false_claim_is_caught_and_a_true_one_that_is_not_made_is_told(toy: Callable[..., str]) -> None:
    lie = toy(lambda at: exact(at.theta.norm(dim=1)), "permutation,filter")
    shy = toy(lambda at: exact(at.loss()), "none")
    found = audited("mlp", [(lie, {}), (shy, {})])
    verdicts = {(r["metric"], r["transform"]): r["verdict"] for r in found.to_dict("records")}
    assert verdicts[lie, "permute"] == "holds"
    assert verdicts[lie, "alpha_scale"] == verdicts[lie, "filter_scale"] == "broken"
    assert verdicts[lie, "smooth_sinh"] == verdicts[lie, "logit_scale"] == "never claimed"
    assert verdicts[lie, "batchnorm_scale"] == "not applicable"
    assert invariance.unclaimed(found) == [f"{shy}: permutation, scale, filter, global, smooth"]


def test_settings_are_reduced_only_where_their_annotations_say_so(toy: Callable[..., str]) -> None:
    """Of every metric: types are kept, nothing grows; of a plugin, what is called like ours is left alone."""
    for name in METRICS:
        for own in settings_of(name):
            found = invariance.adapted(name, own)
            assert found.keys() == own.keys() and all(type(found[k]) is type(own[k]) for k in own), name
            changed = {k for k in own if found[k] != own[k]}
            assert all(found[k] < own[k] for k in changed) and changed <= REDUCED, name

    def odd(
        at: Point,
        *,
        probes: Annotated[int, Ge(8)] = 8,
        tolerance: Literal["a"] = "a",
        draws: str = "many",
        few: Annotated[int | None, registry.FEW] = None,
        slow: Annotated[float, registry.InAudit(0.5)] = 0.75,
    ) -> Estimate:
        assert (probes, tolerance, draws, few, slow) == (8, "a", "many", None, 0.5)
        return exact(at.theta.norm(dim=1))

    name = toy(odd, "permutation")
    own = REGISTRY["metric"][name].settings().model_dump()
    assert set(audited("mlp", [(name, own)])["verdict"]) <= {"holds", "never claimed", "not applicable"}
    assert invariance.adapted("hessian_top", {"tolerance": 1e-9}) == {"tolerance": 1e-9}  # tighter already


REDUCED = {"probes", "draws", "directions", "chains", "tolerance"}  # of our own metrics


def test_draws_of_a_plugin_follow_a_permutation(toy: Callable[..., str]) -> None:
    """With a generator, with the process' own, in place, and one matrix for all: none needs to know of the audit."""

    def rough(at: Point) -> Estimate:
        p, rng = at.theta.shape[1], torch.Generator().manual_seed(3)
        torch.manual_seed(5)
        vs = [torch.randn(p, generator=rng, dtype=f64), torch.rand(p).double(), torch.empty(p, dtype=f64).normal_()]
        vs += list((2.0 * torch.randint(0, 2, (2, p), generator=rng) - 1).double())
        vs += list(torch.randn(p, 2, generator=rng, dtype=f64).T)
        H = at.train.hessian_product(at.theta)
        return exact(sum((v * H(v.expand_as(at.theta).contiguous())).sum(1) for v in vs))

    with torch.random.fork_rng(devices=[]):
        found = audited("mlp", [(toy(rough, "permutation"), {})])
    own = found.set_index("transform")["verdict"]
    assert own["permute"] == "holds" and own["filter_scale"] == "never claimed"


@pytest.mark.parametrize(
    ("before", "after", "error", "claim", "due"),
    [
        (1.0, 1.0 + 5e-7, 0.0, "filter", "holds"),
        (1.0, 1.0 + 5e-6, 0.0, "filter", "broken"),
        (1.0, nan, 0.0, "filter", "broken"),
        (1.0, 1.1, 0.05, "permutation", "unresolved"),
        (1.0, 1.0, 0.0, "", "never claimed"),
        (0.0, 0.0, 0.0, "filter", "holds"),
        (0.0, 1e-16, 0.0, "filter", "unresolved"),
        (2e-16, 9e-16, 0.0, "filter", "unresolved"),
        *((one, other, 0.0, "filter", "broken") for one, other in ((1.0, inf), (inf, 1.0), (1.0, -inf))),
        (1.0, 1.1, inf, "permutation", "broken"),
        (nan, 1.0, 0.0, "filter", "not applicable"),
    ],
)
def test_verdicts(before: float, after: float, error: float, claim: str, due: str) -> None:
    assert verdicts.verdict(before, after, error, claim) == due
    assert verdicts.verdict(before, after, error, claim, applies=False) == "not applicable"


def test_alpha_scale_moves_every_layer(toy: Callable[..., str]) -> None:
    """A claim on one layer alone is tried too: before, only groups that share no layer were moved."""
    names = [n for n in minimum("mlp")[0].train.like if n.endswith("weight")]
    assert len(names) > 2
    for name in names:
        one = toy(lambda at, name=name: exact(at.train.unflatten(at.theta)[name].flatten(1).norm(dim=1)), "scale")
        assert audited("mlp", [(one, {})]).set_index("transform")["verdict"]["alpha_scale"].eq("broken").all(), name


def test_a_metric_that_fails_or_has_no_value_in_other_coordinates_is_told(toy: Callable[..., str]) -> None:
    def evades(at: Point) -> Estimate:
        """NaN where its claim would be tried."""
        return exact(at.theta.norm(dim=1) * (nan if at.train.network.kind == "charted" else 1.0))

    def raises(at: Point) -> Estimate:
        """Not for images."""
        if len(at.theta) > 1:
            raise RuntimeError("one at a time")
        return exact(at.theta.norm(dim=1))

    found = audited("mlp", [(toy(evades, "smooth, permutation"), {})]).set_index("transform")["verdict"]
    assert (found["smooth_sinh"], found["smooth_cubic"], found["permute"]) == ("not checked", "not checked", "holds")
    rows, _ = invariance.audit(*minimum("mlp"), [(toy(raises, "filter"), {})])
    assert {row["verdict"] for row in rows} == {"failed"} and "one at a time" in rows[0]["message"]


def test_what_could_not_be_checked_is_told(capsys: pytest.CaptureFixture[str], toy: Callable[..., str]) -> None:
    evades = toy(lambda at: exact(at.theta.norm(dim=1) * (nan if at.train.network.kind == "charted" else 1)), "smooth")
    print_audit.show(audited("mlp", [(evades, {})]), [], [])
    assert f"not checked: {evades} claims smooth: smooth_sinh" in capsys.readouterr().out


def test_a_claim_that_there_is_not_is_refused() -> None:
    with pytest.raises(Fault, match="permutaton: no such claim; there are none, permutation"):
        metric(invariant="permutaton, filter", source="a test")
    assert [verdicts.equal(*pair) for pair in ((1e-3, "1e-3"), (True, "true"), (10, "10"), ("layer", "layer"))] == [
        True
    ] * 4
    assert not any(verdicts.equal(*pair) for pair in ((1e-3, "1e-2"), (True, "1"), (10, "x"), ("layer", "none")))


def test_what_follows_a_search_is_held_to_less() -> None:
    """Rounding turns the path of ten steps of L-BFGS-B: 2.5e-6 were seen under a mere permutation."""
    assert (verdicts.tolerance("keskar_sharpness"), verdicts.tolerance("hessian_top")) == (1e-4, 1e-6)
    assert verdicts.verdict(1.0, 1.00001, 0.0, "permutation", tolerance=1e-4) == "holds"
    assert verdicts.verdict(1.0, 1.001, 0.0, "permutation", tolerance=1e-4) == "broken"


def test_a_claim_implies_weaker_ones_and_goes_by_the_setting() -> None:
    shelf, rp_settings = REGISTRY["metric"], {"blocks": "kernel"}
    assert verdicts.claimed(shelf["regret_kl"], {}, "scale") == "smooth"
    assert verdicts.claimed(shelf["regret_kl"], {}, "global") == "smooth"
    assert (
        verdicts.claimed(shelf["path_norm"], {}, "scale") == "filter"
        and verdicts.claimed(shelf["path_norm"], {}, "smooth") == ""
    )
    assert (
        verdicts.claimed(shelf["train_loss"], {}, "smooth") == "output"
        and verdicts.claimed(shelf["train_loss"], {}, "") == ""
    )
    assert verdicts.claimed(shelf["contrast_fisher"], rp_settings, "filter") == "filter"
    assert verdicts.claimed(shelf["contrast_fisher"], {"blocks": "layer"}, "filter") == ""
    assert verdicts.claimed(shelf["pac_bayes_magnitude"], {"eps": 0.0}, "filter") == "filter"
    assert verdicts.claimed(shelf["pac_bayes_magnitude"], {"eps": 1e-3}, "filter") == ""


def test_sharpening_reaches_orders_of_magnitude_but_not_for_the_kl_ball() -> None:
    point, at = minimum("mlp")
    top = ("hessian_top", REGISTRY["metric"]["hessian_top"].settings().model_dump())
    kl = ("regret_kl", REGISTRY["metric"]["regret_kl"].settings(**SETTINGS["regret_kl"]).model_dump())
    up, down = invariance.sharpen(point, at, top, 100.0)
    assert (up["transform"], down["transform"], up["claim"], up["strength"]) == ("sharpen", "flatten", "", 100.0)
    assert up["ratio"] > 1e3 and down["ratio"] < 1.0
    assert up["before"] == pytest.approx(brute("mlp", None)["hessian_top"], rel=1e-6)
    for row in invariance.sharpen(point, at, kl, 100.0):
        assert row["ratio"] == pytest.approx(1, abs=1e-5) and (row["verdict"], row["tolerance"]) == ("holds", 1e-4)
    assert invariance.sharpen(*minimum("tanh"), top, 100.0) == []


def test_lines_are_those_of_li_and_of_dinh() -> None:
    point, at = minimum("mlp")
    for name, t in curves.direction(at.params, True, 0).items():
        if t.dim() > 2:
            assert_close(t[0].norm(dim=1), at.params[name][0].norm(dim=1), rtol=1e-12, atol=0)
        else:
            assert not t.any()
    columns = DataFrame(invariance.drive(point, at, 50.0))
    images = list(dict.fromkeys(columns["image"]))
    tops = [columns[columns["image"] == i]["hessian_top"].iloc[0] for i in images]
    assert tops[0] == pytest.approx(brute("mlp", None)["hessian_top"], rel=1e-6)
    assert tops[1] / tops[0] == pytest.approx(50, rel=1e-3)
    assert len(columns) == 2 * 3 * len(curves.POINTS)
    curve = {key: own["train_loss"].to_numpy() for key, own in columns.groupby(["image", "normalization"])}
    middle = len(curves.POINTS) // 2
    for losses in curve.values():
        assert losses[middle] == pytest.approx(float(point.loss()), rel=1e-9)  # the same function
    plain, driven, other = images
    assert curve[driven, "filter"] == pytest.approx(curve[plain, "filter"], rel=1e-9)  # alpha_scale is undone
    assert abs(curve[driven, "none"] / curve[plain, "none"] - 1).max() > 1
    assert abs(curve[other, "filter"] / curve[plain, "filter"] - 1).max() > 0.1  # smooth is not
    theta, d = (
        vector(trained("mlp")[0]),
        torch.cat([t[0].flatten() for t in curves.direction(at.params, True, 0).values()]),
    )
    z = plain_logits(trained("mlp")[0], trained("mlp")[1])(theta + curves.POINTS[3] * d)
    assert curve[plain, "filter"][3] == pytest.approx(
        float(nn.functional.cross_entropy(z, trained("mlp")[2])), rel=1e-9
    )


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "tanh"])
@pytest.mark.parametrize("transform", ["smooth_cubic", "smooth_sinh", "global_scale"])
def test_sample_hessians_in_other_coordinates(name: str, transform: str) -> None:
    """|H_i v|^2 by the layers' formula and by whole products, which `dense` confirms above."""
    point, at = minimum(name)
    moved = transforms.TRANSFORMS[transform].move(at, 2.0).minima
    train = replace(point.train, network=moved.network, like=moved.params)
    phi = torch.cat([t.flatten(1) for t in moved.params.values()], 1)
    v = torch.randn(phi.shape, generator=torch.Generator().manual_seed(4), dtype=f64)
    products = torch.cat(list(sample_gradients.sample_hessian_products(train, phi, v)), 1)
    due = torch.stack([products[..., own].square().sum(-1) for own in train.columns.values()], -1)
    assert_close(sample_gradients.hessian_squares(train, phi, v), due, rtol=1e-8, atol=1e-12)
    assert_close(products.mean(1), train.hessian_product(phi)(v), rtol=1e-8, atol=1e-12)


def test_the_bytes_of_a_sample_keep_no_graph_alive() -> None:
    """A saved tensor that a hook hands back is a cycle that not even the garbage collector frees."""
    point, _ = minimum("mlp")
    memory = {n: t.numpy().copy() for n, t in point.train.like.items()}
    freed = weakref.ref(memory["0.weight" if "0.weight" in memory else next(iter(memory))])
    part = replace(point.train, like={n: torch.from_numpy(m) for n, m in memory.items()})
    assert part.bytes_per_sample > 0
    del part, memory
    gc.collect()
    assert freed() is None


@pytest.mark.parametrize("net", [nn.ReLU, lambda: nn.ReLU(inplace=True)])
def test_relu_that_is_differentiated_twice_is_relu(net: Callable[[], nn.Module]) -> None:
    module = nn.Sequential(nn.Linear(4, 6), net(), nn.Linear(6, 3)).double()
    built = network.build(module, (4,), f64)
    params, buffers = network.stack([module, module])
    x = torch.randn(5, 4, dtype=f64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(built(params, buffers, x, Pass(twice=True)), built(params, buffers, x))
    assert [g.writers for g in channel_groups(built, (4,), "scale") if not g.reason] == [["0"]]


def test_the_command_writes_its_table_and_exits_by_what_it_found(call: Call, tmp_path: Any) -> None:
    registry.load_plugins([])
    code, out, _ = call("audit", "tiny.yaml", "--quiet")
    assert code == 0 and "weight_norm" in out and "claims hold" in out
    (path,) = tmp_path.glob("results/*/invariance.csv")
    found = tables.read_table(path)
    assert list(found.columns) == list(tables.INVARIANCE)
    assert set(found["verdict"]) <= {"holds", "never claimed", "not applicable"} and len(found) == 9
    assert all(isfinite(v) for v in found[found["verdict"] == "holds"]["ratio"])
    code, _, err = call("audit", "tiny.yaml", "--runs", "nonsense")
    assert code == 2 and "--runs: nonsense: no run of" in err
    code, _, err = call("audit", "tiny.yaml", "--runs", " , ")
    assert code == 2 and err == "--runs: ' , ' names nothing: --runs A,B\n"
    for none in ("", ","):
        code, _, err = call("audit", "tiny.yaml", "--sharpen", none)
        assert code == 2 and err == f"--sharpen: {none!r} names nothing: --sharpen A,B\n"
    code, _, err = call("audit", "tiny.yaml", "--sharpen", "nonsense")
    assert code == 2 and "nonsense" in err
    (tmp_path / "lie.py").write_text(LIE)
    try:
        code, out, err = call("audit", "tiny.yaml", "--plugin", "lie.py", "--metrics", "lie")
    finally:
        REGISTRY["metric"].pop("lie", None)
    assert code == 3 and "lie claims filter: alpha_scale changes it" in " ".join((out + err).split())


LIE = """
from landscape_cli.metrics.point import exact
from landscape_cli.registry import metric

@metric(invariant="filter", source="a test")
def lie(at):
    "The length of all parameters, which no rescaling leaves alone."
    return exact(at.theta.norm(dim=1))
"""


def test_what_cannot_be_rescaled_or_has_no_value_is_said_and_the_rest_is_there(call: Call, tmp_path: Any) -> None:
    (tmp_path / "lost.py").write_text(
        "from landscape_cli.metrics.point import exact\n"
        "from landscape_cli.registry import metric\n"
        "@metric(invariant='filter', source='a test')\n"
        "def lost(at):\n"
        "    return exact(at.theta.norm(dim=1) * float('nan'))\n"
    )
    sets = ("--set", "model.activation=tanh", "--set", "audit.drive=10", "--sharpen", "hessian_top")
    code, out, err = call("audit", "tiny.yaml", "--metrics", "lost", "--plugin", "lost.py", *sets, "--json", "--quiet")
    told = json.loads(out)
    assert code == 0, err
    assert {row["verdict"] for row in told["invariance"]} == {"not applicable"}
    why = "no channels of this network can be rescaled"
    assert {f"sharpen: hessian_top: {why}", f"drive: {why}"} <= set(told["not_applicable"])
    code, out, _ = call("audit", "tiny.yaml", "--metrics", "lost", "--plugin", "lost.py", *sets, "--quiet")
    assert code == 0 and "no metric has a value at this minimum" in out
    REGISTRY["metric"].pop("lost")


def test_a_checkpoint_is_audited_in_a_folder_of_its_own(call: Call, tmp_path: Any) -> None:
    call("train", "tiny.yaml", "--quiet")
    file = min(tmp_path.glob("results/*/minima/*.safetensors"))
    code, out, _ = call("audit", str(file), "--metrics", "hessian_top", "--quiet", "--json")
    assert code == 0 and '"transform": "permute"' in out
    assert list(tmp_path.glob("results/*-checkpoints/invariance.csv"))
    assert call("audit", str(file), "--runs", "a")[0] == 2
    assert call("audit", "missing.pt", "--config", "tiny.yaml")[0] == 5


def test_wrong_sections_are_told(call: Call, tmp_path: Any) -> None:
    (tmp_path / "bad.yaml").write_text(yaml_of(TINY | {"audit": {"bound": 0.5, "shapren": []}}))
    code, _, err = call("audit", "bad.yaml")
    assert code == 2 and "audit.bound" in err and "sharpen" in err
