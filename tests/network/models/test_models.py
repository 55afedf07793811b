"""Registered models: sizes, inputs that they do not take, and that each can be trained in a stack."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from conftest import Call, begin, build_module, settings_of, some_data
from torch import Tensor, nn

from landscape_cli import config, network, training
from landscape_cli.curvature.objective import Objective, flatten
from landscape_cli.metrics.point import Point
from landscape_cli.network import Pass, batchnorm_statistics, memory
from landscape_cli.registry import REGISTRY, Entry
from landscape_cli.registry.errors import Fault

TRIED: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    *(({"name": name}, (1, 8, 8)) for name in ("linear", "mlp", "cnn", "lenet")),
    *(({"name": name, "batchnorm": True}, (1, 8, 8)) for name in ("mlp", "cnn")),
    ({"name": "cnn1d"}, (1, 40)),
    *(({"name": "resnet", "width": 4, "norm": norm}, (1, 8, 8)) for norm in ("batch", "group", "none")),
    ({"name": "resnet", "width": 3, "shortcuts": False}, (2, 9, 9)),
    *(({"name": "vgg", "width": 4, "depth": d, "norm": n}, (1, 8, 8)) for d, n in ((9, "batch"), (16, "none"))),
    ({"name": "wide_resnet", "depth": 10, "widen": 1}, (1, 8, 8)),
    ({"name": "wide_resnet", "depth": 10, "widen": 1, "dropout": 0.3}, (3, 8, 8)),
    ({"name": "torchvision", "arch": "resnet18"}, (3, 32, 32)),
]


def test_every_model_is_tried_here() -> None:
    own = {n for n, e in REGISTRY["model"].items() if e.function.__module__.startswith("landscape_cli.")}
    assert own == {spec["name"] for spec, _ in TRIED}


@pytest.mark.parametrize(
    ("spec", "shape", "due"),
    [
        ({"name": "mlp"}, (1, 8, 8), 17_610),
        ({"name": "cnn1d"}, (1, 40), 5_210),
        ({"name": "cnn1d"}, (40,), 5_210),
        ({"name": "linear"}, (1, 8, 8), 650),
        ({"name": "linear", "bias": False}, (1, 8, 8), 640),
        ({"name": "mlp", "hidden": [4], "bias": False}, (5,), 5 * 4 + 4 * 10),
        ({"name": "mlp", "hidden": [4], "batchnorm": True}, (5,), 5 * 4 + 4 + 2 * 4 + 4 * 10 + 10),
        ({"name": "lenet"}, (1, 32, 32), 61_706),  # LeNet-5 with full connections, as is often printed
        ({"name": "cnn", "channels": [3]}, (2, 8, 8), 3 * 2 * 9 + 3 + 3 * 16 * 10 + 10),
        ({"name": "resnet"}, (3, 32, 32), 269_722),  # He et al. 2016, table 6: 0.27, 0.46, 0.85 and 1.7 million
        ({"name": "resnet", "depth": 32}, (3, 32, 32), 464_154),
        ({"name": "resnet", "depth": 56}, (3, 32, 32), 853_018),
        ({"name": "resnet", "depth": 56, "shortcuts": False}, (3, 32, 32), 853_018),
        ({"name": "resnet", "depth": 110}, (3, 32, 32), 1_727_962),
        ({"name": "wide_resnet", "depth": 28, "widen": 10}, (3, 32, 32), 36_479_194),  # their table 5: 36.5 million
        ({"name": "wide_resnet", "depth": 16, "widen": 4}, (3, 32, 32), 2_748_890),
        ({"name": "vgg", "depth": 16, "norm": "none"}, (3, 32, 32), 14_714_688 + 2 * (512 * 512 + 512) + 5_130),
        ({"name": "torchvision", "arch": "resnet18"}, (3, 32, 32), 11_181_642),
    ],
)
def test_parameter_counts(spec: dict[str, Any], shape: tuple[int, ...], due: int) -> None:
    module = build_module(spec, shape, 10, 0)
    assert sum(p.numel() for p in module.parameters()) == due


@pytest.mark.parametrize(
    ("spec", "shape"), TRIED, ids=lambda v: "-".join(map(str, v.values())) if isinstance(v, dict) else ""
)
@pytest.mark.parametrize("K", [1, 3])
def test_each_runs_stacked_as_alone(spec: dict[str, Any], shape: tuple[int, ...], K: int) -> None:
    """Logits of all together equal those of each module by itself, in evaluation and with batch statistics."""
    modules = [build_module(spec, shape, 10, seed).double() for seed in range(K)]
    net = network.build(modules[0], shape, torch.float64)
    assert net.kind == "stacked"
    x = some_data(7, shape).x_train
    params, buffers = network.stack(modules)
    for mode in ("fixed", "batch"):
        logits = net(params, buffers, x, Pass(batchnorm="fixed" if mode == "fixed" else "batch"))
        for k, module in enumerate(modules):
            network.set_modes(module, norm=mode == "batch", dropout=False)
            due = module(x).detach()
            torch.testing.assert_close(logits[k], due, rtol=1e-10, atol=1e-10)


def test_resnet_is_that_of_he_written_out() -> None:
    """Blocks with F.pad and slices for the shortcuts, as the common code for CIFAR has them, with the same weights."""
    module = build_module({"name": "resnet"}, (3, 32, 32), 10, 0)
    for p in module.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    x = h = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (conv, norm), *pairs = list(zip(layers[:-1:2], layers[1:-1:2], strict=True))
    h = F.relu(norm(conv(h)))
    for (conv1, norm1), (conv2, norm2) in zip(pairs[::2], pairs[1::2], strict=True):
        out = norm2(conv2(F.relu(norm1(conv1(h)))))
        if out.shape != h.shape:
            h = F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, out.shape[1] // 4, out.shape[1] // 4))
        h = F.relu(out + h)
    due = layers[-1](h.mean((2, 3)))
    torch.testing.assert_close(module(x), due)
    assert len(pairs) == 18


@pytest.mark.parametrize(
    ("model", "shape"), [({"name": "resnet", "width": 2}, (1, 8, 8)), ({"name": "vgg", "width": 2}, (1, 8, 8))]
)
@pytest.mark.parametrize("ghost", [None, 4])
def test_batchnorm_nets_train_together_as_alone(
    model: dict[str, Any], shape: tuple[int, ...], ghost: int | None
) -> None:
    data = some_data(30, shape)
    s = settings_of(batch_size=10, ghost_batch=ghost, momentum=0.9, weight_decay=1e-3, stop={"max_epochs": 3})

    def trained(seeds: list[int]) -> dict[int, training.Outcome]:
        net, state, buffers = begin(model, data, [s] * len(seeds), seeds)
        assert net.kind == "stacked"
        return {seeds[o.row]: o for o in training.train(net, data, [s] * len(seeds), seeds, state, buffers)}

    together = trained([0, 1, 2])
    for seed in (0, 2):
        (alone,) = trained([seed]).values()
        for side in ("params", "buffers"):
            for name, t in getattr(alone, side).items():
                torch.testing.assert_close(getattr(together[seed], side)[name], t, rtol=1e-6, atol=1e-8)


def test_ghost_batches_are_normalized_by_themselves() -> None:
    """Ten samples in ghosts of four: two of five, each as if it were the batch (Hoffer et al. 2017)."""
    module = build_module({"name": "cnn", "channels": [3], "batchnorm": True}, (1, 8, 8), 10, 0).double()
    net = network.build(module, (1, 8, 8), torch.float64)
    params, buffers = network.stack([module])
    x = some_data(10, (1, 8, 8)).x_train
    module.train()
    due = torch.cat([module(x[:5]), module(x[5:])])
    torch.testing.assert_close(net(params, buffers, x, Pass("batch", ghost=4))[0], due)
    whole = net(params, buffers, x, Pass("batch"))[0]
    assert (whole - due).abs().max() > 1e-3
    torch.testing.assert_close(net(params, buffers, x, Pass("batch", ghost=10))[0], whole)


def test_an_architecture_that_torchvision_does_not_have() -> None:
    with pytest.raises(Fault) as caught:
        build_module({"name": "torchvision", "arch": "resnet-18"}, (3, 32, 32), 10, 0)
    assert str(caught.value) == "model.arch: torchvision has no 'resnet-18', did you mean 'resnet18'?"


def test_initialization_is_pytorchs_own_and_leaves_its_generator_alone() -> None:
    torch.manual_seed(3)
    due = torch.nn.Linear(4, 5)
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    module = build_module({"name": "mlp", "hidden": [5]}, (4,), 3, 3)
    assert torch.equal(module.get_parameter("1.weight"), due.weight)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(
        build_module({"name": "mlp", "hidden": [5]}, (4,), 3, 4).get_parameter("1.weight"), due.weight
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(("cnn", shape) for shape in ((64,), (1, 40), (1, 2, 2), (1, 8, 1))),
        *(("lenet", shape) for shape in ((8,), (1, 2, 2))),
        *(("cnn1d", shape) for shape in ((1, 8, 8), (1, 1))),
        *((name, (64,)) for name in ("resnet", "vgg", "wide_resnet")),
    ],
)
def test_inputs_that_a_model_does_not_take(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(Fault) as caught:
        build_module({"name": name}, shape, 10, 0)
    said = str(caught.value)
    assert said.startswith(f"model.name: {name!r} does not take inputs of shape {shape} (")
    assert "\n" not in said and caught.value.code == 2


def test_a_plugins_model_with_wrong_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    from landscape_cli.registry import Entry

    def narrow(input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
        return torch.nn.Linear(input_shape[0], num_classes - 1)

    monkeypatch.setitem(REGISTRY["model"], "narrow", Entry("narrow", "model", narrow))
    with pytest.raises(Fault) as caught:
        build_module({"name": "narrow"}, (4,), 3, 0)
    assert str(caught.value) == "model.name: 'narrow' gives (2,) values a sample, 3 are due"


class Pair(NamedTuple):
    logits: Tensor
    features: Tensor


ALONE = "return the logits alone, a tensor (samples, 3)"
NO_LOGITS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "tuple": (lambda z: (z, z), f"a tuple of 2 for a batch: {ALONE}"),
    "list": (lambda z: [z], f"a list of 1 for a batch: {ALONE}"),
    "named tuple": (lambda z: Pair(z, z), f"a Pair of 2 for a batch: {ALONE}"),
    "dict": (
        lambda z: {"logits": z, "features": z},
        f"a dict with keys logits, features for a batch: {ALONE}",
    ),
    "none": (lambda z: None, f"nothing (None) for a batch: {ALONE}"),
    "number": (lambda z: 1.5, f"a float for a batch: {ALONE}"),
    "array": (lambda z: z.detach().numpy(), f"a ndarray for a batch: {ALONE}"),
    "one axis": (lambda z: z[:, 0], f"a tensor (2,) for 2 samples: {ALONE}"),
    "mean loss": (lambda z: z.mean(), f"a tensor () for 2 samples: {ALONE}"),
    "three axes": (lambda z: z[..., None], f"a tensor (2, 3, 1) for 2 samples: {ALONE}"),
    "one row": (lambda z: z[:1], "1 rows for 2 samples: each sample needs its own"),
    "more rows": (lambda z: torch.cat([z, z]), "4 rows for 2 samples: each sample needs its own"),
    "classes": (lambda z: z[:, :2], "(2,) values a sample, 3 are due"),
    "integers": (lambda z: z.long(), "numbers of type int64: return the logits, which are real"),
    "truths": (lambda z: z > 0, "numbers of type bool: return the logits, which are real"),
    "complex": (lambda z: z + 0j, "numbers of type complex64: return the logits, which are real"),
}


def giving(monkeypatch: pytest.MonkeyPatch, last: Callable[[Tensor], Any]) -> None:
    """Registers a model `given` whose forward pass ends with this."""

    class Given(nn.Module):
        def __init__(self, size: int, classes: int) -> None:
            super().__init__()
            self.layer = nn.Linear(size, classes)

        def forward(self, x: Tensor) -> Any:
            return last(self.layer(x.flatten(1)))

    def given(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Ends with what the test says."""
        return Given(math.prod(input_shape), num_classes)

    monkeypatch.setitem(REGISTRY["model"], "given", Entry("given", "model", given))


@pytest.mark.parametrize("kind", NO_LOGITS)
def test_a_model_that_gives_no_logits_is_one_line(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    last, due = NO_LOGITS[kind]
    giving(monkeypatch, last)
    with pytest.raises(Fault) as caught:
        build_module({"name": "given"}, (4,), 3, 0)
    assert (str(caught.value), caught.value.code) == (f"model.name: 'given' gives {due}", 2)


@pytest.mark.parametrize("words", [("train",), ("measure",), ("doctor",), ("compare",), ("surface",), ("audit",)])
def test_every_command_says_so(words: tuple[str, ...], call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    giving(monkeypatch, lambda z: (z, z))
    path = Path("given.yaml")
    path.write_text(Path("tiny.yaml").read_text().replace('"mlp", "hidden": [8]', '"given"'))
    code, out, err = call(*words, "given.yaml")
    due = "model.name: 'given' gives a tuple of 2 for a batch: return the logits alone, a tensor (samples, 10)"
    assert (code, out, err.splitlines()[-1]) == (2, "", due)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_logits_of_another_real_type_are_taken(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    giving(monkeypatch, lambda z: z.to(dtype))
    module = build_module({"name": "given"}, (4,), 3, 0)
    net = network.build(module, (4,))
    params, buffers = network.stack([module, module])
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    out = net(params, buffers, x)
    assert out.dtype == torch.float32 and out.shape == (2, 5, 3)
    torch.testing.assert_close(out[0], module(x).float())


def test_a_model_without_parameters_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY["model"], "idle", Entry("idle", "model", lambda shape, classes: nn.Flatten()))
    with pytest.raises(Fault, match=r"^model.name: 'idle' has no parameters: there is nothing to train$"):
        build_module({"name": "idle"}, (4,), 4, 0)


def test_statistics_in_pieces_are_those_of_the_whole_set() -> None:
    modules = [build_module({"name": "resnet", "width": 2}, (1, 8, 8), 3, seed).double() for seed in range(2)]
    net = network.build(modules[0], (1, 8, 8), torch.float64)
    params, buffers = network.stack(modules)
    x = some_data(40, (1, 8, 8)).x_train
    due = batchnorm_statistics.collect_statistics(net, params, buffers, x)
    with memory.limited(2 * 30_000):
        got = batchnorm_statistics.collect_statistics(net, params, buffers, x)
    assert got.keys() == due.keys()
    for name in due:
        torch.testing.assert_close(got[name], due[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spec", [{"name": "resnet", "width": 2}, {"name": "vgg", "width": 2}])
def test_metrics_of_a_stack_are_those_of_each_network_alone(spec: dict[str, Any]) -> None:
    """Every default metric, on networks with BatchNorm whose statistics and offsets are not those of the start."""
    data, modules = some_data(24, (1, 8, 8), 4), [build_module(spec, (1, 8, 8), 4, seed).double() for seed in range(2)]
    rng = torch.Generator().manual_seed(1)
    for module in modules:
        for t in [*module.buffers(), *module.parameters()]:
            if t.is_floating_point() and t.dim() == 1:
                t.data += 0.3 * torch.rand(t.shape, generator=rng)
    net = network.build(modules[0], (1, 8, 8), torch.float64)

    def at(some: list[nn.Module]) -> Point:
        params, buffers = network.stack(some)
        sides = [Objective(net, params, buffers, data.x_train, data.y_train) for _ in range(2)]
        return Point(flatten(params), *sides, 0.9 * flatten(params))

    together, alone = at(modules), [at([module]) for module in modules]
    for entry in (e for e in REGISTRY["metric"].values() if e.facts.get("default")):
        for settings in _settings(entry.name):
            found = [entry.function(point, **settings) for point in (together, *alone)]
            both, *ones = [rows if isinstance(rows, dict) else {"": rows} for rows in found]
            for key, estimate in both.items():
                values = torch.cat([one[key].value for one in ones])
                assert torch.allclose(estimate.value, values, rtol=1e-6, atol=1e-12, equal_nan=True), entry.name


def _settings(metric: str) -> list[dict[str, Any]]:
    asked = {"name": "a", "dataset": {"name": "digits"}, "model": {"name": "mlp"}, "metrics": [metric]}
    experiment = config.Experiment.model_validate({**asked, "training": {"lr": 0.1, "batch_size": 10}})
    return [own for _, own in config.measurements(experiment)]
