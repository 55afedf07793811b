"""Which channels of a network may be rescaled or reordered together without changing its function, from its graph.

The activations between layers form groups of channels: what one layer writes, activations and pools pass on, sums tie
together (a residual net's trunk is one group), and other layers read. Multiplying a channel where it is written and
dividing it where it is read changes nothing, if every map between is positively homogeneous; reordering it changes
nothing if every map between acts channel by channel.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from landscape_cli.network import Network
from landscape_cli.network.layers import POOLS, SMOOTH
from landscape_cli.registry.errors import Fault

LOGITS = "the logits are what must not change"
Purpose = Literal["scale", "permute"]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
HOMOGENEOUS = {nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, F.relu, torch.relu, F.leaky_relu, operator.neg}
HOMOGENEOUS |= {"relu", "relu_", "contiguous"}
ELEMENTWISE = HOMOGENEOUS | {nn.ReLU6, nn.Hardtanh} | SMOOTH
SUMS = {operator.add, operator.iadd, operator.sub, torch.add, torch.sub, "add", "add_"}
PRODUCTS = {operator.mul, torch.mul}
FLAT = {torch.flatten, "flatten", nn.Flatten}
MEANS = {torch.mean, "mean"}
POOLING = {*POOLS, F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d}
POOLING |= {F.adaptive_avg_pool1d, F.adaptive_avg_pool2d}


@dataclass
class Group:
    """Channels that are tied to each other.

    Args:
        size: how many.
        writers: layers with a row of parameters for each channel.
        readers: layers that read them; each channel is `repeat` inputs of theirs, one after the other.
        carriers: BatchNorm layers that pass them on, for `permute`.
        reason: why they cannot be moved; empty if they can.
    """

    size: int
    writers: list[str] = field(default_factory=list)
    readers: list[tuple[str, int]] = field(default_factory=list)
    carriers: list[str] = field(default_factory=list)
    reason: str = ""

    @property
    def name(self) -> str:
        """Writers and readers as a reader of a table sees them."""
        return f"{'+'.join(self.writers)}->{'+'.join(name for name, _ in self.readers)}"

    def join(self, other: Group) -> None:
        """Tie the channels of another group to these."""
        self.writers += other.writers
        self.readers += other.readers
        self.carriers += other.carriers
        self.reason = LOGITS if LOGITS in (self.reason, other.reason) else self.reason or other.reason
        if self.size != other.size:
            self.reason = self.reason or f"sums {self.size} with {other.size} channels"


@dataclass(frozen=True)
class _Value:
    """The channels of one activation: group number, the dimension they lie along, entries of each."""

    group: int
    axis: int
    repeat: int = 1


def channel_groups(network: Network, input_shape: tuple[int, ...], purpose: Purpose) -> list[Group]:
    """All groups between layers, in order, also those that cannot be moved, with the reason.

    Args:
        network: any whose graph is known.
        input_shape: of one sample.
        purpose: scale, by a positive factor each; permute.
    Raises: Fault if the network has no graph that torch.fx can trace.
    """
    if network.graph is None:
        raise Fault(f"model: which of its channels belong together cannot be worked out: {network.reason}")
    return _Walk(network, purpose).through(network.graph, input_shape)


class _Walk:
    """One pass over the graph that ties groups together as it meets them."""

    def __init__(self, network: Network, purpose: Purpose) -> None:
        self.module, self.scaling = network.module, purpose == "scale"
        self.groups: list[Group] = []
        self.parent: list[int] = []
        self.values: dict[fx.Node, _Value] = {}

    def through(self, graph: fx.GraphModule, input_shape: tuple[int, ...]) -> list[Group]:
        like = next(graph.parameters())
        ShapeProp(graph).propagate(torch.zeros(2, *input_shape, dtype=like.dtype, device=like.device))
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self.new(node, "the inputs are given")
            elif node.op == "output":
                self.fix(node.args[0], LOGITS)
            else:
                self.values[node] = self.visit(node)
        roots = dict.fromkeys(self.root(i) for i in range(len(self.groups)))
        found = [self.groups[i] for i in roots]
        for group in found:
            if not group.reason and not (group.writers and group.readers):
                group.reason = "nothing writes them" if group.readers else "nothing reads them"
        return [group for group in found if group.writers]

    def visit(self, node: fx.Node) -> _Value:
        layer = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        kind: Any = type(layer) if layer is not None else node.target
        inputs = node.all_input_nodes
        constant = len(inputs) == 1 and not all(isinstance(a, fx.Node) for a in node.args)  # x + 1, not x + x
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            return self.weights(node, str(node.target), layer)
        if isinstance(layer, NORMS):
            return self.norm(node, str(node.target), layer)
        if len(inputs) == 2 and (kind in SUMS or (kind in PRODUCTS and not self.scaling)):
            return self.tie(node, *inputs)
        passes = kind in (HOMOGENEOUS if self.scaling else ELEMENTWISE)
        passes |= kind in SUMS and not (constant and self.scaling)
        passes |= kind in PRODUCTS and (constant or not self.scaling)
        if passes and len(inputs) == 1:
            return self.values[inputs[0]]
        if kind in FLAT:
            return self.flat(node, inputs[0])
        if kind in POOLING or kind in MEANS:
            return self.pooled(node, inputs[0], kind in MEANS)
        for one in inputs:
            self.fix(one, f"{_name(node)} does not pass a factor on" if self.scaling else f"{_name(node)} mixes them")
        return self.new(node, f"they come out of {_name(node)}")

    def weights(self, node: fx.Node, name: str, layer: Any) -> _Value:
        """A layer that mixes channels: it reads one group and writes another."""
        (one,) = node.all_input_nodes
        x, axis = self.values[one], _dim(node) - 1 if isinstance(layer, nn.Linear) else 1
        if x.axis != axis or getattr(layer, "groups", 1) > 1:
            self.fix(one, f"{name} reads them otherwise than by channel")
        else:
            self.of(x).readers.append((name, x.repeat))
        out = self.new(node, "", axis)
        self.of(out).writers.append(name)
        return out

    def norm(self, node: fx.Node, name: str, layer: Any) -> _Value:
        """BatchNorm: its scale and shift write a group of their own; its statistics absorb a factor before it."""
        (one,) = node.all_input_nodes
        x = self.values[one]
        if x.axis != 1 or x.repeat > 1:
            self.fix(one, f"{name} normalizes them otherwise than by channel")
        if not self.scaling:
            self.of(x).carriers.append(name)
            return x
        self.of(x).readers.append((name, 1))
        if not layer.affine:
            return self.new(node, f"{name} has no scale of its own", 1)
        out = self.new(node, "", 1)
        self.of(out).writers.append(name)
        return out

    def tie(self, node: fx.Node, left: fx.Node, right: fx.Node) -> _Value:
        a, b = self.values[left], self.values[right]
        if _shape(left) != _shape(right) or (a.axis, a.repeat) != (b.axis, b.repeat):
            self.fix(left, f"{_name(node)} spreads one over the other")
            self.fix(right, f"{_name(node)} spreads one over the other")
            return self.new(node, f"they come out of {_name(node)}")
        i, j = self.root(a.group), self.root(b.group)
        if i != j:
            self.groups[i].join(self.groups[j])
            self.parent[j] = i
        return a

    def flat(self, node: fx.Node, x: fx.Node) -> _Value:
        value, before, after = self.values[x], _shape(x), _shape(node)
        if before == after:
            return value
        if value.axis == 1 and len(after) == 2 and after[0] == before[0]:
            return _Value(value.group, 1, value.repeat * prod(before[2:]))
        self.fix(x, f"{_name(node)} mixes them with other dimensions")
        return self.new(node, f"they come out of {_name(node)}")

    def pooled(self, node: fx.Node, x: fx.Node, mean: bool) -> _Value:
        value, before, after = self.values[x], _shape(x), _shape(node)
        if value.axis == 1 and value.repeat == 1 and len(after) > 1 and before[:2] == after[:2]:
            return value
        what = "averages" if mean else "pools"
        self.fix(x, f"{_name(node)} {what} over them")
        return self.new(node, f"they come out of {_name(node)}")

    def new(self, node: fx.Node, reason: str, axis: int = 1) -> _Value:
        shape = _shape(node)
        self.groups.append(Group(shape[axis] if axis < len(shape) else 1, reason=reason))
        self.parent.append(len(self.parent))
        return _Value(len(self.parent) - 1, axis)

    def fix(self, x: Any, reason: str) -> None:
        group = self.of(self.values[x])
        group.reason = LOGITS if LOGITS in (group.reason, reason) else group.reason or reason

    def of(self, value: _Value) -> Group:
        return self.groups[self.root(value.group)]

    def root(self, i: int) -> int:
        while self.parent[i] != i:
            i = self.parent[i]
        return i


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _dim(node: fx.Node) -> int:
    return len(_shape(node))


def _name(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else node.name
