"""Which runs are trained together, and the saved states from which a stack goes on after a stop.

Membership is decided once, from the config, when a stack starts, and kept in `stacks/<id>.json` until it is finished:
SGD amplifies rounding, so the same runs must meet again after a stop, whatever has been finished meanwhile.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape_cli import store
from landscape_cli.config import Run, canonical, digest
from landscape_cli.network import Params
from landscape_cli.training import State, batch_of, common, stack_size, work_of

FORMAT = 1


def shape_key(run: Run) -> str:
    """Runs with equal keys can be trained together: all settings but those that may differ inside a stack."""
    return canonical(replace(run.settings, training=common(run.settings.training)).hashed)


def plan(folder: Path, runs: list[Run], done: dict[str, list[str]], module_of: Any, shape_of: Any) -> list[list[Run]]:
    """The stacks that are to be trained: those begun and not finished, then the other missing runs in order.

    Args:
        folder: the experiment's.
        runs: all runs of the config.
        done: id of each finished run -> ids of the stack in which it was trained.
        module_of: run -> its module, for its size.
        shape_of: run -> shape of its training inputs, (n, ...).
    """
    known = {run.run_id: run for run in runs}

    def goes_on(ids: list[str]) -> bool:
        """All its runs are wanted, some are missing, and none was finished in another company meanwhile."""
        return ids != [] and known.keys() >= set(ids) != done.keys() & ids and all(done.get(i, ids) == ids for i in ids)

    stacks = [[known[i] for i in ids] for ids in begun(folder) if goes_on(ids)]
    taken = done.keys() | {run.run_id for stack in stacks for run in stack}
    missing: dict[str, list[Run]] = {}
    for run in runs:
        if run.run_id not in taken:
            missing.setdefault(shape_key(run), []).append(run)
    for alike in missing.values():
        size = stack_size(work(alike[0], module_of(alike[0]), shape_of(alike[0])))
        stacks += [alike[i : i + size] for i in range(0, len(alike), size)]
    return stacks


def work(run: Run, module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of one of its steps on training inputs of this shape, (n, ...), roughly."""
    parameters = sum(p.numel() for p in module.parameters())
    convolutional = any(isinstance(m, nn.modules.conv._ConvNd) for m in module.modules())
    batch = batch_of(run.settings.training, shape[0])
    return work_of(parameters, batch, prod(shape[2:]) if convolutional else 0)


def identity(stack: list[Run]) -> str:
    """Name of a stack's files."""
    return name_of([run.run_id for run in stack])


def name_of(run_ids: list[str]) -> str:
    """Name of a stack's files, from its members."""
    return digest(run_ids, 12)


def begun(folder: Path) -> Iterator[list[str]]:
    """Run ids of every stack that has begun and has not been finished."""
    for path in sorted((folder / "stacks").glob("*.json")):
        try:
            found = json.loads(path.read_text())
            yield [str(i) for i in found["runs"]]
        except (ValueError, KeyError, TypeError, OSError):
            continue  # not ours, or garbled: its runs form new stacks


def start(folder: Path, stack: list[Run]) -> None:
    """Note who is in the stack, before any of them is finished."""
    data = json.dumps({"format": FORMAT, "runs": [run.run_id for run in stack]}, indent=1).encode()
    store.write(folder / "stacks" / f"{identity(stack)}.json", data)


def finish(folder: Path, stack: list[Run]) -> None:
    """Remove the stack's files; its runs are all recorded."""
    forget(folder, identity(stack))


def forget(folder: Path, name: str) -> None:
    """Remove the saved states of a stack, then the note of who is in it."""
    store.remove(folder, [*sorted((folder / "stacks").glob(f"{name}-*")), folder / "stacks" / f"{name}.json"])


def save(folder: Path, stack: list[Run], state: State) -> None:
    """Keep the state, under a name that holds its hash, and the one before it; remove older ones."""
    from safetensors.torch import save as to_bytes

    groups = {"params": state.params, "finite": state.finite, "best": state.best}
    groups |= {f"moments{i}": moment for i, moment in enumerate(state.moments)}
    tensors = {f"{group}/{n}": t.detach().cpu().contiguous() for group, own in groups.items() for n, t in own.items()}
    facts = {"active": state.active, "step": state.step, "history": state.history, "seconds": state.seconds}
    facts |= {"looks": state.looks}
    data = to_bytes(tensors, {"state": json.dumps(facts), "format": str(FORMAT)})
    name = f"{identity(stack)}-{state.step:012d}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    store.write(folder / "stacks" / name, data)
    store.remove(folder, _states(folder, stack)[:-2])


def load(folder: Path, stack: list[Run], order: list[str], device: torch.device, warnings: list[str]) -> State | None:
    """The newest saved state whose hash is right, its parameters in the given order, or None."""
    from safetensors import safe_open

    for path in reversed(_states(folder, stack)):
        if hashlib.sha256(path.read_bytes()).hexdigest()[:16] != path.stem.rsplit("-", 1)[1]:
            warnings.append(f"{path}: damaged (its hash differs); going on from the state before it")
            continue
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["state"])
            groups: dict[str, Params] = {}
            for name in file.keys():  # noqa: SIM118  # not a dict
                group, _, own = name.partition("/")
                # a fresh block: products round by the alignment of their operands, and the file's is another
                groups.setdefault(group, {})[own] = file.get_tensor(name).clone().to(device)
        ordered = {group: {n: own[n] for n in order} for group, own in groups.items()}
        moments = [ordered[g] for g in sorted(ordered) if g.startswith("moments")]
        done = {k: facts[k] for k in ("active", "step", "history", "seconds")} | {"looks": facts.get("looks", [])}
        finite, best = (ordered.get(k, {}) for k in ("finite", "best"))
        return State(ordered["params"], moments=moments, finite=finite, best=best, **done)
    return None


def _states(folder: Path, stack: list[Run]) -> list[Path]:
    """Saved states, oldest first."""
    return sorted((folder / "stacks").glob(f"{identity(stack)}-*.safetensors"))
