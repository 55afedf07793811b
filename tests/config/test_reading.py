"""Configs: every kind of mistake meets one clear line, and what is accepted expands into the same runs for ever."""

# ruff: noqa: E501 - error lines are compared whole, and read best in one piece

import json
import re
import subprocess
import sys
import time
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from landscape_cli import config
from landscape_cli.config import yaml_tree
from landscape_cli.registry import REGISTRY, Count, NonNegative, Positive, Share, dataset, metric, model, optimizer
from landscape_cli.registry.errors import Fault

GOOD = """\
# a comment
name: t
dataset: {name: digits, train_size: 1000}
model: {name: mlp, hidden: [8]}
training:
  lr: 0.1
  batch_size: 10
  stop: {train_loss: 0.01}
grid: {training.batch_size: [10, 1000]}
seeds: 2
"""


def _toys() -> None:
    @dataset
    def digits():
        """Digits."""

    @dataset
    def mnist1d():
        """MNIST-1D."""

    @dataset
    def npz(*, path: str):
        """Arrays of your own."""

    @model
    def mlp(input_shape, num_classes, *, hidden: list[Count] = [100], bias: bool = True, gain: float = 1):  # noqa: B006
        """Layers."""

    @model
    def cnn1d(input_shape, num_classes, *, channels: Count = 25, norm: Literal["batch"] | None = None):
        """Convolutions."""

    @optimizer
    def sgd(at, v, *, momentum: Share = 0.0, nesterov: bool = False, weight_decay: NonNegative = 0.0):
        """Descent."""

    @optimizer
    def adam(at, m, v, *, beta1: Share = 0.9, beta2: Share = 0.999, weight_decay: NonNegative = 0.0):
        """Moments."""

    @metric(invariant="none", source="x", default=True, minibatch_size=[1, 10])
    def regret(at, *, minibatch_size: Count = 10, minibatches: Annotated[int, Ge(3)] = 100):
        """Regret."""

    @metric(invariant="none", source="x")
    def hessian_top(at, *, k: Count = 1, tolerance: Positive = 1e-3, layers: list[Count] | None = None):
        """Eigenvalue."""


@pytest.fixture(autouse=True)
def toys(monkeypatch, tmp_path):
    for kind in REGISTRY:
        monkeypatch.setitem(REGISTRY, kind, {})
    _toys()
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def resolve(tmp_path):
    def go(text: str | bytes, *sets: str) -> config.Experiment:
        (tmp_path / "cfg.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return config.resolve(config.read("cfg.yaml", sets))

    return go


def edit(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


BOMB = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n"
NUMBER = "1" * 5000

WRONG: dict[str, tuple[str | bytes, str]] = {
    "unknown key": (
        edit("batch_size: 10\n", "batch_size: 10\n  momentun: 0.9\n"),
        "cfg.yaml:8:3: training.momentun: unknown key, did you mean 'momentum'?\n    momentun: 0.9",
    ),
    "missing and misspelt": (
        edit("batch_size: 10\n", "batchsize: 10\n"),
        "cfg.yaml:5:1: training.batch_size: is missing: give it a value\n    training:\n"
        "cfg.yaml:7:3: training.batchsize: unknown key, did you mean 'batch_size'?\n    batchsize: 10",
    ),
    "key with nothing near": (
        edit("{train_loss: 0.01}", "{qqq: 1}"),
        "cfg.yaml:8:10: training.stop.qqq: unknown key; known: train_loss, max_epochs, max_steps, check_every, patience, score\n"
        "    stop: {qqq: 1}",
    ),
    "key in the wrong section": (
        edit("name: t\n", "name: t\nlr: 1\n"),
        "cfg.yaml:3:1: lr: unknown key, `lr` belongs under `training`\n    lr: 1",
    ),
    "key one level too high": (
        edit("batch_size: 10\n", "batch_size: 10\n  max_epochs: 3\n"),
        "cfg.yaml:8:3: training.max_epochs: unknown key, `max_epochs` belongs under `training.stop`\n    max_epochs: 3",
    ),
    "key of the top level": (
        edit("batch_size: 10\n", "batch_size: 10\n  precision: float64\n"),
        "cfg.yaml:8:3: training.precision: unknown key, `precision` belongs at the top level\n    precision: float64",
    ),
    "model's setting at the top": (
        edit("name: t\n", "name: t\nhidden: [3]\n"),
        "cfg.yaml:3:1: hidden: unknown key, `hidden` belongs under `model`\n    hidden: [3]",
    ),
    "wrong type": (edit("lr: 0.1", "lr: [1]"), "cfg.yaml:6:7: training.lr: must be a number, got [1]\n    lr: [1]"),
    "no": (edit("lr: 0.1", "lr: no"), "cfg.yaml:6:7: training.lr: must be a number, got 'no'\n    lr: no"),
    "true": (edit("lr: 0.1", "lr: true"), "cfg.yaml:6:7: training.lr: must be a number, got true\n    lr: true"),
    "true for a count": (edit("seeds: 2", "seeds: true"), "cfg.yaml:10:8: seeds: must be a whole number, got true\n    seeds: true"),
    "nan": (edit("lr: 0.1", "lr: .nan"), "cfg.yaml:6:7: training.lr: must be a finite number, got .nan\n    lr: .nan"),
    "inf": (edit("lr: 0.1", "lr: .inf"), "cfg.yaml:6:7: training.lr: must be a finite number, got .inf\n    lr: .inf"),
    "1e999": (edit("lr: 0.1", "lr: 1e999"), "cfg.yaml:6:7: training.lr: must be a finite number, got .inf\n    lr: 1e999"),
    "negative": (edit("lr: 0.1", "lr: -1"), "cfg.yaml:6:7: training.lr: must be greater than 0, got -1\n    lr: -1"),
    "fraction": (edit("seeds: 2", "seeds: 1.5"), "cfg.yaml:10:8: seeds: must be a whole number, got 1.5\n    seeds: 1.5"),
    "octal of old": (
        edit("train_size: 1000", "train_size: 0777"),
        "cfg.yaml:3:37: dataset.train_size: must be a whole number, got '0777'\n    dataset: {name: digits, train_size: 0777}",
    ),
    "union": (
        edit("batch_size: 10\n", "batch_size: ful\n"),
        "cfg.yaml:7:15: training.batch_size: must be a whole number or 'full', got 'ful', did you mean 'full'?\n"
        "    batch_size: ful",
    ),
    "shorthand": (
        edit("{name: digits, train_size: 1000}", "digits"),
        "cfg.yaml:3:10: dataset: must be {name: a dataset, its settings}, got 'digits'\n    dataset: digits",
    ),
    "element of a list": (
        edit("[8]", "[8, 1.5]"),
        "cfg.yaml:4:32: model.hidden[1]: must be a whole number, got 1.5\n    model: {name: mlp, hidden: [8, 1.5]}",
    ),
    "duplicate key": (
        edit("seeds: 2", "seeds: 2\nseeds: 3"),
        "cfg.yaml:11:1: duplicate key 'seeds', first given in line 10\n    seeds: 3",
    ),
    "anchor": (edit("[8]", "&h [8]"), "cfg.yaml:4:28: anchor &h: anchors are not supported, write the value out\n    model: {name: mlp, hidden: &h [8]}"),
    "alias": (edit("[8]", "*h"), "cfg.yaml:4:28: alias *h: aliases are not supported, write the value out\n    model: {name: mlp, hidden: *h}"),
    "tag": (
        edit("[8]", "!!python/tuple [8]"),
        "cfg.yaml:4:28: tag !!python/tuple: tags are not supported, a config holds plain values only\n"
        "    model: {name: mlp, hidden: !!python/tuple [8]}",
    ),
    "merge key": (
        edit("  lr: 0.1", "  <<: {lr: 0.1}"),
        "cfg.yaml:6:3: merge keys (<<) are not supported, write the keys out\n    <<: {lr: 0.1}",
    ),
    "number as key": (edit("seeds: 2", "10: 2"), "cfg.yaml:10:1: a key must be a name, got 10\n    10: 2"),
    "list as key": (edit("seeds: 2", "[a]: 2"), "cfg.yaml:10:1: a key must be a name, got a list or a mapping\n    [a]: 2"),
    "empty": ("", "cfg.yaml:1:1: is empty"),
    "only comments": ("# hi\n", "cfg.yaml:1:1: is empty"),
    "two documents": (GOOD + "---\na: 1\n", "cfg.yaml:11:1: a second document starts here: one config a file\n    ---"),
    "list on top": ("- a\n", "cfg.yaml:1:1: must be `key: value` lines at the top, got a list\n    - a"),
    "not YAML": ("a: [1\nb: 2\n", "cfg.yaml:2:2: not valid YAML: while parsing a flow sequence: expected ',' or ']', but got ':'\n    b: 2"),
    "tab": ("a:\n\tb: 1\n", "cfg.yaml:2:1: not valid YAML: a tab; indent with spaces\n    \\tb: 1"),
    "unknown metric": (
        GOOD + "metrics: [regrets]\n",
        "cfg.yaml:11:11: metrics[0]: unknown metric 'regrets', did you mean 'regret'?\n    metrics: [regrets]",
    ),
    "unknown metric with settings": (
        GOOD + "metrics: [{regrets: {k: 1}}]\n",
        "cfg.yaml:11:12: metrics[0].regrets: unknown metric 'regrets', did you mean 'regret'?\n    metrics: [{regrets: {k: 1}}]",
    ),
    "metrics as a word": (
        GOOD + "metrics: regret\n",
        "cfg.yaml:11:10: metrics: must be default, all or a list of metrics, got 'regret'; write [regret]\n    metrics: regret",
    ),
    "metric's settings not indented": (
        GOOD + "metrics:\n- regret:\n  minibatches: 3\n",
        "cfg.yaml:12:3: metrics[0]: must be a name or one {name: {settings}}, got 2 keys: indent its settings deeper\n    - regret:",
    ),
    "unknown metric setting": (
        GOOD + "metrics: [{regret: {minibatch: 1}}]\n",
        "cfg.yaml:11:21: metrics[0].regret.minibatch: unknown key, did you mean 'minibatches'?\n    metrics: [{regret: {minibatch: 1}}]",
    ),
    "bad value among rows": (
        GOOD + "metrics: [{regret: {minibatches: [3, 2]}}]\n",
        "cfg.yaml:11:38: metrics[0].regret.minibatches[1]: must be at least 3, got 2\n    metrics: [{regret: {minibatches: [3, 2]}}]",
    ),
    "unknown model": (
        edit("mlp", "mpl"),
        "cfg.yaml:4:15: model.name: unknown model 'mpl', did you mean 'mlp'?\n    model: {name: mpl, hidden: [8]}",
    ),
    "unknown dataset": (
        edit("digits", "imagenet"),
        "cfg.yaml:3:17: dataset.name: unknown dataset 'imagenet'; `landscape list datasets` shows what there is\n"
        "    dataset: {name: imagenet, train_size: 1000}",
    ),
    "required setting": (
        edit("digits", "npz"),
        "cfg.yaml:3:1: dataset.path: is missing: give it a value\n    dataset: {name: npz, train_size: 1000}",
    ),
    "name that climbs": (
        edit("name: t\n", "name: ../x\n"),
        "cfg.yaml:2:7: name: must be 1 to 81 letters, digits, '.', '_' or '-', the first a letter or digit, got '../x'\n    name: ../x",
    ),
    "name that ends in a newline": (
        edit("name: t\n", 'name: "t\\n"\n'),
        "cfg.yaml:2:7: name: must be 1 to 81 letters, digits, '.', '_' or '-', the first a letter or digit, got 't\\n'\n"
        '    name: "t\\n"',
    ),
    "grid key": (
        edit("training.batch_size: [10, 1000]", "batch_size: [1]"),
        "cfg.yaml:9:8: grid.batch_size: no such setting, did you mean 'training.batch_size'?\n    grid: {batch_size: [1]}",
    ),
    "grid over a section": (
        edit("training.batch_size: [10, 1000]", "training.stop: [1]"),
        "cfg.yaml:9:8: grid.training.stop: training.stop is a section: sweep one of its keys\n    grid: {training.stop: [1]}",
    ),
    "grid over models": (
        edit("training.batch_size: [10, 1000]", "model.name: [mlp]"),
        "cfg.yaml:9:8: grid.model.name: a grid sweeps settings, not names: sweep model, whose values are whole sections\n"
        "    grid: {model.name: [mlp]}",
    ),
    "grid over datasets": (
        edit("training.batch_size: [10, 1000]", "dataset.name: [digits]"),
        "cfg.yaml:9:8: grid.dataset.name: a grid sweeps settings, not names: write one config for each name\n"
        "    grid: {dataset.name: [digits]}",
    ),
    "grid over whole models": (
        edit("training.batch_size: [10, 1000]", "model: [{name: mlp, gain: x}, {name: mpl}, {hidden: [8]}, mlp]"),
        "cfg.yaml:9:34: grid.model[0].gain: must be a number, got 'x'\n"
        "    grid: {model: [{name: mlp, gain: x}, {name: mpl}, {hidden: [8]}, mlp]}\n"
        "cfg.yaml:9:45: grid.model[1].name: unknown model 'mpl', did you mean 'mlp'?\n"
        "    grid: {model: [{name: mlp, gain: x}, {name: mpl}, {hidden: [8]}, mlp]}\n"
        "cfg.yaml:9:51: grid.model[2].name: is missing: give it a value\n"
        "    grid: {model: [{name: mlp, gain: x}, {name: mpl}, {hidden: [8]}, mlp]}\n"
        "cfg.yaml:9:66: grid.model[3]: must be {name: a model, its settings}, got 'mlp'\n"
        "    grid: {model: [{name: mlp, gain: x}, {name: mpl}, {hidden: [8]}, mlp]}",
    ),
    "grid over models and their settings": (
        edit("training.batch_size: [10, 1000]", "model: [{name: mlp}], model.bias: [true, false]"),
        "cfg.yaml:9:30: grid.model.bias: model is swept as a whole: write it into its values\n"
        "    grid: {model: [{name: mlp}], model.bias: [true, false]}",
    ),
    "grid values": (
        edit("[10, 1000]", "[10, 0, 10, x]"),
        "cfg.yaml:9:34: grid.training.batch_size[1]: must be at least 1 or 'full', got 0\n    grid: {training.batch_size: [10, 0, 10, x]}\n"
        "cfg.yaml:9:37: grid.training.batch_size[2]: 10 is in the list twice\n    grid: {training.batch_size: [10, 0, 10, x]}\n"
        "cfg.yaml:9:41: grid.training.batch_size[3]: must be a whole number or 'full', got 'x'\n    grid: {training.batch_size: [10, 0, 10, x]}",
    ),
    "grid that is empty": (
        edit("[10, 1000]", "[]"),
        "cfg.yaml:9:29: grid.training.batch_size: must be a list of at least 1, got []\n    grid: {training.batch_size: []}",
    ),
    "grid too large": (
        edit("seeds: 2", "seeds: 1000000"),
        "cfg.yaml:9:7: grid: makes 2,000,000 runs with its seeds, at most 100,000 are allowed\n    grid: {training.batch_size: [10, 1000]}",
    ),
    "label": (
        GOOD + "compare: {by: training.batch_size, labels: {20: small}}\n",
        "cfg.yaml:11:45: compare.labels[20]: must be a value of training.batch_size (10, 1000)\n"
        "    compare: {by: training.batch_size, labels: {20: small}}",
    ),
    "label given twice": (
        GOOD + "compare: {by: training.batch_size, labels: {10: a, 1000: a}}\n",
        "cfg.yaml:11:44: compare.labels: two values of training.batch_size are called 'a': groups need names of their own\n"
        "    compare: {by: training.batch_size, labels: {10: a, 1000: a}}",
    ),
    "compare by what is not swept": (
        GOOD + "compare: {by: training.lr}\n",
        "cfg.yaml:11:15: compare.by: must be a key of the grid (training.batch_size), got 'training.lr'\n    compare: {by: training.lr}",
    ),
    "control character": (GOOD.encode() + b"a: \x1b[31m\n", "cfg.yaml:11:4: control character U+001B: remove it\n    a: \\x1b[31m"),
    "escaped control character": (
        edit("name: t\n", 'name: "\\e[31m"\n'),
        'cfg.yaml:2:7: control character U+001B in a value: remove it\n    name: "\\e[31m"',
    ),
    "UTF-16": (GOOD.encode("utf-16"), "cfg.yaml:1:1: must be UTF-8, it looks like UTF-16 or UTF-32: save it as UTF-8"),
    "Latin-1": ("a: 1\nb: é\n".encode("latin-1"), "cfg.yaml:2:4: byte 0xe9 is not UTF-8: save the file as UTF-8\n    b: \ufffd"),
    "5,000 digits": (
        edit("seeds: 2", f"seeds: {NUMBER}"),
        f"cfg.yaml:10:8: whole number of 5000 digits: at most 18 are supported\n    seeds: {NUMBER[:150]}...",
    ),
    "2,000 deep": (
        "a: " + "[" * 2000,
        "cfg.yaml:1:53: nested more than 50 levels deep\n    a: " + "[" * 154 + "...",
    ),
    "billion laughs": (BOMB, "cfg.yaml:1:4: anchor &a: anchors are not supported, write the value out\n    a: &a [x, x, x]"),
    "too large": (b"#" * 2_000_000, "cfg.yaml:1:1: over 200 kB: this is no config"),
    "impossible escape": ('a: "\\UFFFFFFFF"', 'cfg.yaml:1:7: not valid YAML: an escape or a number out of range\n    a: "\\UFFFFFFFF"'),
    "nesterov alone": (
        edit("  lr: 0.1", "  nesterov: true\n  lr: 0.1"),
        "cfg.yaml:6:13: training.nesterov: needs momentum above 0\n    nesterov: true",
    ),
    "patience with nothing held out": (
        edit("{train_loss: 0.01}", "{patience: 5}"),
        "cfg.yaml:8:20: training.stop.patience: needs samples that are held out: dataset.validation, 0.1 for a tenth\n"
        "    stop: {patience: 5}",
    ),
    "patience and a goal": (
        edit("{train_loss: 0.01}", "{train_loss: 0.01, patience: 5}").replace("1000}", "1000, validation: 0.1}"),
        "cfg.yaml:8:38: training.stop.patience: keeps the best parameters, not those at train_loss: leave out one\n"
        "    stop: {train_loss: 0.01, patience: 5}",
    ),
    "patience of none": (
        edit("{train_loss: 0.01}", "{patience: 0}"),
        "cfg.yaml:8:20: training.stop.patience: must be at least 1, got 0\n    stop: {patience: 0}",
    ),
    "score without patience": (
        edit("{train_loss: 0.01}", "{score: accuracy}"),
        "cfg.yaml:8:17: training.stop.score: does nothing without patience\n    stop: {score: accuracy}",
    ),
    "all held out": (
        edit("train_size: 1000", "validation: 1"),
        "cfg.yaml:3:37: dataset.validation: must be less than 1, got 1\n    dataset: {name: digits, validation: 1}",
    ),
    "setting without effect": (
        edit("  lr: 0.1", "  optimizer: adam\n  momentum: 0.9\n  lr: 0.1"),
        "cfg.yaml:7:13: training.momentum: does nothing with optimizer adam, only with sgd or sam\n    momentum: 0.9",
    ),
    "rho without sam": (
        edit("  lr: 0.1", "  rho: 0.1\n  lr: 0.1"),
        "cfg.yaml:6:8: training.rho: does nothing with optimizer sgd, only with sam\n    rho: 0.1",
    ),
    "sharpness-aware said twice": (
        edit("  lr: 0.1", "  optimizer: sam\n  sharpness_aware: {rho: 0.1}\n  lr: 0.1"),
        "cfg.yaml:7:20: training.sharpness_aware: is what optimizer sam means: write sgd, or leave it out\n    sharpness_aware: {rho: 0.1}",
    ),
    "unknown optimizer": (
        edit("  lr: 0.1", "  optimizer: adm\n  lr: 0.1"),
        "cfg.yaml:6:14: training.optimizer: must be 'sgd', 'sam' or 'adam', got 'adm', did you mean 'adam'?\n    optimizer: adm",
    ),
    "grid over a section and one of its keys": (
        edit("training.batch_size: [10, 1000]", "training.sharpness_aware: [null, {}], training.sharpness_aware.rho: [1]"),
        "cfg.yaml:9:46: grid.training.sharpness_aware.rho: training.sharpness_aware is swept as a whole: write it into its values\n"
        "    grid: {training.sharpness_aware: [null, {}], training.sharpness_aware.rho: [1]}",
    ),
    "step without milestones": (
        edit("  lr: 0.1", "  schedule: step\n  lr: 0.1"),
        "cfg.yaml:6:13: training.schedule: step needs milestones, the epochs at which lr falls\n    schedule: step",
    ),
    "batch larger than the data": (
        edit("[10, 1000]", "[10, 2000]"),
        "cfg.yaml:9:34: grid.training.batch_size[1]: 2000 is more than dataset.train_size 1000: lower it, or write full\n"
        "    grid: {training.batch_size: [10, 2000]}",
    ),
    "several at once, in order": (
        edit("lr: 0.1", "lr: no").replace("name: t", "name: -t").replace("mlp", "mpl"),
        "cfg.yaml:2:7: name: must be 1 to 81 letters, digits, '.', '_' or '-', the first a letter or digit, got '-t'\n    name: -t\n"
        "cfg.yaml:4:15: model.name: unknown model 'mpl', did you mean 'mlp'?\n    model: {name: mpl, hidden: [8]}\n"
        "cfg.yaml:6:7: training.lr: must be a number, got 'no'\n    lr: no",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_config_meets_a_clear_line(case: str, resolve) -> None:
    text, expected = WRONG[case]
    start = time.process_time()
    with pytest.raises(Fault) as fault:
        resolve(text)
    assert str(fault.value) == expected
    assert fault.value.code == 2
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("training.lr=foo", "--set training.lr=foo: training.lr: must be a number, got 'foo'"),
        ("training.lr=.nan", "--set training.lr=.nan: training.lr: must be a finite number, got .nan"),
        ("seeds=1.5", "--set seeds=1.5: seeds: must be a whole number, got 1.5"),
        ("training.batchsize=3", "--set training.batchsize=3: training.batchsize: unknown key, did you mean 'batch_size'?"),
        ("grid.training.lr=3", "--set grid.training.lr=3: grid.training.lr: must be a list, [a, b], got 3"),
        ("name.x=3", "--set name.x=3: name is 't', not a section"),
        ("seeds", "--set seeds: write --set key.path=value, such as --set training.lr=0.05"),
        ("=3", "--set =3: write --set key.path=value, such as --set training.lr=0.05"),
        ("a..b=3", "--set a..b=3: write --set key.path=value, such as --set training.lr=0.05"),
        ("seeds=&a 3", "--set seeds=&a 3: anchor &a: anchors are not supported, write the value out"),
        ("seeds=[1", "--set seeds=[1: not valid YAML: while parsing a flow sequence: expected ',' or ']', but got '<stream end>'"),
        ("name=\x1b[31m", "--set name=\\x1b[31m: control character U+001B: remove it"),
        ("compare.labels.99999999999999999999=a", "--set compare.labels.99999999999999999999=a: whole number of 20 digits: at most 18 are supported"),
    ],
)  # fmt: skip
def test_wrong_override_meets_a_clear_line(given: str, expected: str, resolve) -> None:
    with pytest.raises(Fault) as fault:
        resolve(GOOD, given)
    assert (str(fault.value), fault.value.code) == (expected, 2)


def test_overrides_are_typed_and_the_last_one_wins(resolve) -> None:
    sets = [
        "training.lr=5",
        "training.lr=1e-2",
        "grid={}",
        "grid.training.momentum=[0, 0.5]",
        "training.nesterov=false",
    ]
    labels = [
        "compare.by=training.momentum",
        "compare.labels.0=plain",
        "compare.labels.0.5=heavy",
        "training.stop=null",
    ]
    experiment = resolve(GOOD, *sets, *labels[:3])
    assert experiment.training.lr == 0.01
    assert experiment.grid == {"training.momentum": [0.0, 0.5]}
    assert [r.group for r in config.expand(experiment)] == ["plain", "plain", "heavy", "heavy"]
    with pytest.raises(
        Fault, match=r"^--set training.stop=null: training.stop: must be a section, {key: value}, got null$"
    ):
        resolve(GOOD, labels[3])


def test_scalars_are_those_of_yaml_1_2() -> None:
    text = "a: [1e-1, no, yes, on, 0777, 1:30, 2001-01-01, 0x1F, 0o17, 1_0, ~, 1., .5, +3, 1E+2, -0, 'a', \"2\", True, -.inf]"
    tree = yaml_tree.load(text, "t")
    expected = [
        0.1,
        "no",
        "yes",
        "on",
        "0777",
        "1:30",
        "2001-01-01",
        31,
        15,
        "1_0",
        None,
        1.0,
        0.5,
        3,
        100.0,
        0,
        "a",
        "2",
        True,
    ]
    assert [(type(v), v) for v in tree.data["a"]] == [(type(v), v) for v in [*expected, float("-inf")]]


def test_resolved_values_have_their_own_type_and_all_defaults(resolve) -> None:
    experiment = resolve(edit("lr: 0.1", "lr: 1").replace("[8]", "[8], gain: 2"))
    assert experiment.dataset.model_dump() == {
        "name": "digits", "train_size": 1000, "label_noise": 0.0, "standardize": False, "validation": 0.0, "seed": 0,
    }  # fmt: skip
    assert experiment.model.model_dump() == {"name": "mlp", "hidden": [8], "bias": True, "gain": 2.0}
    assert [type(v) for v in (experiment.training.lr, experiment.model.gain)] == [float, float]
    assert experiment.training.stop.max_epochs == 1000


def test_runs_are_every_combination_in_order_with_stable_ids(resolve) -> None:
    runs = config.expand(resolve(edit("[10, 1000]", "[10, full], model.bias: [true, false]")))
    assert [(*r.swept.values(), r.seed) for r in runs] == [
        (b, bias, s) for b in (10, "full") for bias in (True, False) for s in (0, 1)
    ]
    assert [r.group for r in runs] == ["10"] * 4 + ["full"] * 4
    assert [r.run_id[:-9] for r in runs[:4:2]] == ["b10-biastrue-s0", "b10-biasfalse-s0"]
    assert runs[5].run_id.startswith("bfull-biastrue-s1-")
    assert runs[2].settings.model.bias is False
    assert runs[2].settings.training.batch_size == 10
    assert len({r.run_id for r in runs}) == 8
    # a change here orphans the results of every user: raise the version of the results folder with it
    assert config.expand(resolve(GOOD))[0].run_id == "b10-s0-ddd93295"


def test_models_are_swept_as_whole_sections_and_called_by_what_differs(resolve) -> None:
    text = edit(
        "training.batch_size: [10, 1000]", "model: [{name: mlp}, {name: mlp, hidden: [4], bias: false}, {name: cnn1d}]"
    )
    labels = "compare: {by: model, labels: {cnn1d: net}}\n"
    text = re.sub("compare:.*\n", "", text) + labels
    experiment = resolve(text)
    assert [m.name for m in experiment.grid["model"]] == ["mlp", "mlp", "cnn1d"]
    runs = config.expand(experiment)
    names = ["mlp hidden=[100] bias=true", "mlp hidden=[4] bias=false", "cnn1d"]
    assert [r.swept for r in runs[::2]] == [{"model": name} for name in names]
    assert [r.group for r in runs[::2]] == [*names[:2], "net"]
    assert [r.settings.model.name for r in runs[::2]] == ["mlp", "mlp", "cnn1d"]
    assert runs[2].run_id.startswith("mlp-hidden4-biasfalse-s0-")
    assert config.expand(resolve(config.dump(experiment))) == runs
    wrong = text.replace("{cnn1d: net", "{cnn: net")
    due = 'must be a value of model ("mlp hidden=[100] bias=true", "mlp hidden=[4] bias=false", cnn1d)'
    with pytest.raises(Fault, match=re.escape(due)):
        resolve(wrong)


def test_run_ids_depend_on_meaning_not_on_spelling(resolve) -> None:
    ids = [r.run_id for r in config.expand(resolve(GOOD))]
    same = edit("lr: 0.1", "momentum: 0\n  lr: 1e-1").replace("[8]", "[8], gain: 1").replace("name: t", "name: other")
    assert ids == [r.run_id for r in config.expand(resolve(same))]
    assert not set(ids) & {r.run_id for r in config.expand(resolve(edit("lr: 0.1", "lr: 0.2")))}
    more = [r.run_id for r in config.expand(resolve(GOOD, "seeds=3"))]
    assert set(ids) < set(more)


def test_run_ids_are_short_and_safe_as_file_names(resolve) -> None:
    text = edit("digits", "npz, path: a").replace(
        "training.batch_size: [10, 1000]", 'dataset.path: ["../ä b/%s", "é"]' % ("x" * 80)
    )
    for run in config.expand(resolve(text)):
        assert len(run.run_id) <= 60
        assert set(run.run_id) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        assert f"-s{run.seed}-" in run.run_id
    assert config.expand(resolve(edit("grid: {training.batch_size: [10, 1000]}\n", "")))[0].group == "all"


def test_combinations_are_checked_as_a_whole_only_where_they_occur(resolve) -> None:
    swept = edit("training.batch_size: [10, 1000]", "training.momentum: [0.5, 0.9]").replace(
        "  lr", "  nesterov: true\n  lr"
    )
    assert len(config.expand(resolve(swept))) == 4  # nesterov with momentum 0, the default, occurs nowhere
    both = edit("training.batch_size: [10, 1000]", "training.optimizer: [sgd, adam]").replace(
        "  lr", "  momentum: 0.9\n  lr"
    )
    assert len(config.expand(resolve(both))) == 4  # momentum is for the sgd half


def test_settings_of_sam_leave_the_ids_of_other_runs_alone(resolve) -> None:
    """They came after the first results were made; in a sweep of optimizers they are for the half that uses them."""
    before = [r.run_id for r in config.expand(resolve(GOOD))]
    assert before == [r.run_id for r in config.expand(resolve(GOOD, "training.rho=0.05", "training.adaptive=false"))]
    runs = config.expand(resolve(edit("training.batch_size: [10, 1000]", "training.optimizer: [sgd, sam]")))
    assert [r.group for r in runs] == ["sgd", "sgd", "sam", "sam"]
    assert [r.run_id.rpartition("-")[2] for r in runs[:2]] == [i.rpartition("-")[2] for i in before[:2]]
    assert [r.settings.training.ascent for r in runs[::2]] == [None, config.SharpnessAware(rho=0.05, adaptive=False)]
    assert [r.settings.training.rule for r in runs[::2]] == ["sgd", "sgd"]
    swept = resolve(edit("training.batch_size: [10, 1000]", "training.rho: [0.05, 0.1]"), "training.optimizer=sam")
    assert len({r.run_id.rpartition("-")[2] for r in config.expand(swept)}) == 4


def test_a_setting_of_several_optimizers_names_them_all(resolve) -> None:
    @optimizer
    def third(at, *, momentum: Share = 0.0):
        """Another."""

    text = edit("  lr: 0.1", "  optimizer: adam\n  momentum: 0.9\n  lr: 0.1")
    with pytest.raises(Fault, match="does nothing with optimizer adam, only with sgd, sam or third\n"):
        resolve(text)


def test_sharpness_aware_is_swept_as_a_whole_or_by_its_keys(resolve) -> None:
    """Around any optimizer; a value of the whole section is called by its keys."""
    text = edit("training.batch_size: [10, 1000]", "training.sharpness_aware: [null, {rho: 0.1}]")
    runs = config.expand(resolve(text, "training.optimizer=adam"))[::2]
    assert [run.group for run in runs] == ["null", "rho=0.1 adaptive=false"]
    assert [run.settings.training.ascent for run in runs] == [None, config.SharpnessAware(rho=0.1)]
    assert [run.run_id.rpartition("-s0-")[0] for run in runs] == [
        "sharpnessawarenull", "sharpnessawarerho0.1-adaptivefalse",
    ]  # fmt: skip
    rhos = edit("training.batch_size: [10, 1000]", "training.sharpness_aware.rho: [0.1, 0.2]")
    assert [run.settings.training.ascent.rho for run in config.expand(resolve(rhos))[::2]] == [0.1, 0.2]
    assert config.expand(resolve(config.dump(resolve(text)))) == config.expand(resolve(text))


def test_how_a_run_was_trained_is_known_without_its_model(resolve, tmp_path) -> None:
    """A report of a plugin's model needs its learning rates, not the plugin."""
    resolve(
        edit(
            "training.batch_size: [10, 1000]",
            "training.optimizer: [sgd, sam], training.lr: [0.1, 0.2], model.gain: [1, 2]",
        )
    )
    path = tmp_path / "cfg.yaml"
    runs = config.expand(config.resolve(config.read("cfg.yaml")))
    path.write_text(path.read_text().replace("name: mlp", "name: gone"))
    found = list(config.trainings_of(config.read("cfg.yaml"), [run.swept for run in runs]))
    assert found == [run.settings.training for run in runs]
    assert list(config.trainings_of(config.read("cfg.yaml"), [{"training.lr": "high"}])) == [None]


def test_measurements_are_complete_and_one_row_a_value(resolve) -> None:
    def rows(metrics: str) -> list[tuple[str, dict[str, Any]]]:
        return config.measurements(resolve(GOOD + f"metrics: {metrics}\n"))

    regret = [("regret", {"minibatch_size": m, "minibatches": 100}) for m in (1, 10)]
    top = {"k": 1, "tolerance": 0.001, "layers": None}
    assert rows("default") == regret
    assert rows("all") == [*regret, ("hessian_top", top)]
    assert rows("[hessian_top, {regret: {minibatch_size: 10}}, regret]") == [("hessian_top", top), regret[1], regret[0]]
    given = rows("[{hessian_top: {k: [1, 2], tolerance: [1, 2], layers: [3, 4]}}]")
    assert given == [("hessian_top", {"k": k, "tolerance": t, "layers": [3, 4]}) for k in (1, 2) for t in (1.0, 2.0)]
    assert [type(s["tolerance"]) for _, s in given] == [float] * 4
    assert rows("[]") == []


def test_a_metric_whose_setting_has_no_default_must_be_given_one(resolve) -> None:
    @metric(invariant="none", source="x", default=True)
    def needy(at, *, radius: Positive):
        """Needs a radius."""

    with pytest.raises(Fault) as fault:
        resolve(GOOD + "metrics: [needy]\n")
    expected = "cfg.yaml:11:11: metrics[0]: needy needs a value for radius\n    metrics: [needy]"
    assert str(fault.value) == expected
    with pytest.raises(Fault, match="needy needs a value for radius"):
        resolve(GOOD)
    assert config.measurements(resolve(GOOD + "metrics: [{needy: {radius: [1, 2]}}]\n")) == [
        ("needy", {"radius": 1.0}), ("needy", {"radius": 2.0}),
    ]  # fmt: skip


def test_origins_name_file_override_and_default(resolve, tmp_path) -> None:
    (tmp_path / "cfg.yaml").write_text(GOOD)
    tree = config.read("cfg.yaml", ["training.momentum=0.5"])
    found = {key: (value, origin) for key, value, origin in config.origins(tree, config.resolve(tree))}
    assert found["training.batch_size"] == (10, "cfg.yaml:7")
    assert found["training.momentum"] == (0.5, "--set")
    assert found["model.bias"] == (True, "default")
    assert found["training.stop.max_epochs"] == (1000, "default")
    assert found["grid.training.batch_size"] == ([10, 1000], "cfg.yaml:9")


@pytest.mark.parametrize("name", ["small-vs-large", "batch-size-sweep", "mnist1d"])
def test_shipped_configs_resolve_and_have_a_summary(name: str) -> None:
    experiment = config.resolve(config.read(name))
    assert experiment.name == name
    assert len(config.expand(experiment)) == {"small-vs-large": 16, "batch-size-sweep": 20, "mnist1d": 8}[name]
    assert config.summary(config.shipped()[name]).endswith((".", "?"))
    assert "language-server" not in config.summary(config.shipped()[name])


def test_a_config_is_found_by_path_by_local_name_then_among_those_shipped(tmp_path) -> None:
    assert config.find("mnist1d") == config.shipped()["mnist1d"]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mnist1d.yaml").write_text(GOOD)
    assert config.find("mnist1d").resolve() == tmp_path / "configs" / "mnist1d.yaml"
    assert config.read("configs/mnist1d.yaml").data["name"] == "t"
    for target, message in {
        "small-vs-larg": "config small-vs-larg: no such file or name, did you mean 'small-vs-large'?",
        "a/mnist1.yaml": "config a/mnist1.yaml: no such file or name, did you mean 'mnist1d'?",
        "\0zz": f"config \\x00zz: no such file or name; known: {', '.join(sorted(config.shipped()))}",
        "configs": "config configs: is a folder, name a file in it",
    }.items():
        with pytest.raises(Fault) as fault:
            config.read(target)
        assert str(fault.value) == message
    with pytest.raises(Fault):
        config.find("x" * 5000)


def test_reading_needs_no_torch() -> None:
    code = "import sys; from landscape_cli import config; config.read('mnist1d'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_schema_lists_what_is_registered() -> None:
    schema = json.loads(json.dumps(config.json_schema()))
    datasets = {d["properties"]["name"]["const"]: d for d in schema["properties"]["dataset"]["anyOf"]}
    assert set(datasets) == {"digits", "mnist1d", "npz"}
    assert datasets["npz"]["required"] == ["name", "path"]
    options = {"train_size", "label_noise", "standardize", "validation", "seed"}
    assert set(datasets["digits"]["properties"]) == {"name", *options}
    items = schema["properties"]["metrics"]["anyOf"][1]["items"]["anyOf"]
    assert items[0] == {"enum": ["hessian_top", "regret"]}
    k = items[1]["properties"]["hessian_top"]["anyOf"][0]["properties"]["k"]["anyOf"]
    assert [one["type"] for one in k] == ["integer", "array"]
    references = [p for p in json.dumps(schema).split('"') if p.startswith("#/$defs/")]
    assert references
    assert all(r.removeprefix("#/$defs/") in schema["$defs"] for r in references)


def test_digest_knows_types_but_not_the_order_of_keys() -> None:
    assert config.canonical({"b": [1, 1.0, None, True], "a": 1e-8}) == '{"a":1e-08,"b":[1,1.0,null,true]}'
    assert config.digest({"a": 1, "b": 2}, 12) == config.digest({"b": 2, "a": 1}, 12)
    assert config.digest({"a": 1}, 12) != config.digest({"a": 1.0}, 12)
    assert len(config.digest({}, 12)) == 12


FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
YAMLISH = st.lists(
    st.sampled_from([*"abc01 \n\t:-[]{},#&*!|>'\"%@`?~.\\", "\n  ", ": ", "- ", "---\n", "<<", "1e", "0x", "...", "\\U", "training", "name"])
).map("".join)  # fmt: skip


@FUZZ
@given(raw=st.one_of(st.binary(), st.text().map(lambda t: t.encode("utf-8", "replace")), YAMLISH.map(str.encode)))
def test_reading_whatever_bytes_succeeds_or_faults(raw: bytes, resolve) -> None:
    try:
        resolve(raw)
    except Fault as fault:
        assert fault.code == 2
        assert str(fault).replace("\n", "").isprintable()
        assert str(fault).startswith("cfg.yaml:")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["full", "sgd", "mlp"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([
    "name", "dataset", "dataset.seed", "model", "model.hidden", "training",
    "training.batch_size", "training.stop", "training.stop.max_steps", "grid", "grid.training.lr", "grid.model.hidden",
    "grid.precision", "seeds", "precision", "metrics", "compare", "compare.by",
    "compare.labels", "compare.labels.10", "x", "training.milestones",
])  # fmt: skip


@FUZZ
@given(key=KEYS, value=VALUES)
def test_whatever_value_anywhere_succeeds_or_faults(key: str, value: Any, resolve) -> None:
    try:
        config.expand(resolve(GOOD, f"{key}={yaml_tree.flow(value)}"))
    except Fault as fault:
        assert fault.code == 2
        assert str(fault).replace("\n", "").isprintable()


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False) | TEXT
    | st.sampled_from(["1e-1", "no", "null", "0o7", "<<", "- a", "1.", "a: b", "#", "~", "\n", "\t", "'"])
)  # fmt: skip


@FUZZ
@given(
    value=st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(TEXT, v, max_size=4), max_leaves=8)
)
def test_flow_yaml_reads_back_equal(value: Any) -> None:
    back = yaml_tree.load("a: " + yaml_tree.flow(value), "t").data["a"]
    assert repr(back) == repr(value)  # repr: 1, 1.0 and true differ


@settings(FUZZ, max_examples=60)
@given(
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    path=TEXT,
    batches=st.lists(st.integers(1, 1000) | st.just("full"), min_size=1, max_size=4, unique=True),
    gains=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=3, unique=True),
    loss=st.none() | st.floats(min_value=1e-9, max_value=10),
    seeds=st.integers(1, 3),
    label=TEXT,
    metrics=st.sampled_from(["default", "all", "[]", "[regret]", "[{hessian_top: {k: [1, 2], tolerance: 1}}, regret]"]),
)
def test_a_dumped_experiment_reads_back_equal(lr, path, batches, gains, loss, seeds, label, metrics, resolve) -> None:
    flow = yaml_tree.flow
    experiment = resolve(
        f"name: t\ndataset: {{name: npz, path: {flow(path)}}}\nmodel: {{name: mlp}}\n"
        f"training: {{lr: {flow(lr)}, batch_size: 1, stop: {{train_loss: {flow(loss)}}}}}\n"
        f"grid: {{training.batch_size: {flow(batches)}, model.gain: {flow(gains)}}}\nseeds: {seeds}\nmetrics: {metrics}\n"
        f"compare: {{by: training.batch_size, labels: {{{flow(batches[0])}: {flow('g' + label)}}}}}\n"
    )
    again = resolve(config.dump(experiment))
    assert again == experiment
    runs = config.expand(experiment)
    assert runs == config.expand(again)
    assert config.measurements(experiment) == config.measurements(again)
    assert len({r.run_id for r in runs}) == len(batches) * len(gains) * seeds
