"""A function of tensors without its overhead: traced once, then played back operation by operation.

More than half of a small net's step is bookkeeping, the interpreter of its layers and autograd's graph, and it is the
same at every step. What is left of it in a trace are the operations themselves, in their order and to the same bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[..., list[Tensor]]
AFTER = 1000  # calls; the first trace of a process takes a second, as it loads what traces, others 0.05 s


def replayed(f: Function, after: int = AFTER) -> Function:
    """f, played back from a trace from its `after`-th call with such shapes and strides on.

    Args:
        f: tensors -> tensors; the same operations at every call: no branches on values and no random numbers.
        after: a trace costs more than a few calls of f.
    """
    calls: Counter[object] = Counter()
    traces: dict[object, Function] = {}

    def call(*tensors: Tensor) -> list[Tensor]:
        layout = tuple([(t.shape, t.stride()) for t in tensors])
        if layout in traces:
            with torch.no_grad():
                return traces[layout](*tensors)
        calls[layout] += 1
        result = f(*tensors)
        if calls[layout] == after and (played := _trusted(f, tensors, result)):
            traces[layout] = played
        return result

    return call


def _trusted(f: Function, tensors: tuple[Tensor, ...], result: list[Tensor]) -> Function | None:
    """A trace that gives the same bits; none of NaN, from which nothing is to be gained, or of what has no trace."""
    try:
        played = _trace(f, tensors)
        with torch.no_grad():
            return played if all(map(torch.equal, played(*tensors), result)) else None
    except Exception:  # the plain call goes on; tracing is an internal of torch, which may refuse anything
        return None


def _trace(f: Function, tensors: tuple[Tensor, ...]) -> Function:
    """The operations of f, those of autograd among them, one after the other."""
    from torch.fx.experimental.proxy_tensor import make_fx  # takes a second to load

    module = make_fx(f)(*[t.detach() for t in tensors])
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten.alias.default:  # autograd's own view of what it keeps
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif isinstance(node.target, torch._ops.OpOverload):  # the same function, called in half the time
            node.target = getattr(torch, node.target.overloadpacket.__name__, node.target)
    module.recompile()
    forward: Function = module.forward
    return forward
