"""Writes metrics, optimizers, commands, results, the table in surfaces.md from code; essay, invariance from tables.

`--check` fails if they are not what it would write.
"""

from __future__ import annotations

import inspect
import sys
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from landscape_cli import cli, registry
from landscape_cli.config.yaml_tree import flow
from landscape_cli.store.columns import RUN_COLUMNS, SWEPT

HERE = Path(__file__).parent
NOTE = "<!-- Made by `python docs/generate.py`. Do not edit: change the docstrings in landscape_cli. -->\n"
FAMILIES = {
    "prediction": "What the network predicts",
    "gradients": "How much minibatches disagree",
    "kl": "The local regret in the KL ball",
    "regret": "The local regret in a finite ball",
    "contrast": "Contrastive flatness",
    "scatter": "Where single samples have their minima",
    "ewc": "The Fisher information as a distance",
    "hessian": "Curvature of the training loss",
    "spectrum": "The spectrum of the Hessian",
    "relative": "Curvature relative to the parameters",
    "sharpness": "Rise of the loss around the minimum",
    "adaptive": "Rise of the loss, measured by the parameters' own sizes",
    "volume": "How far the loss stays low",
    "learning": "How the volume of low losses grows",
    "norms": "Norms",
    "margins": "Margins",
    "baselines": "What is known without a measurement",
}
INVARIANCE = {
    "output": "a function of the network's outputs alone: any change of the parameters that keeps those keeps it",
    "permutation": "reordering hidden units",
    "global": "another unit for all parameters, phi = c theta",
    "scale": "multiplying one layer by a number and dividing the next by it",
    "filter": "the same, one filter (neuron) at a time",
    "smooth": "any smooth change of coordinates of parameter space",
    "none": "nothing",
}


def metrics_page() -> str:
    """The reference of all metrics that come with the package, by family, in table order."""
    out = [NOTE, "# Metrics\n", *_preamble()]
    for family, title in FAMILIES.items():
        out.append(f"## {title}\n")
        out += [_metric(e) for e in registry.REGISTRY["metric"].values() if _family(e) == family]
    return "\n".join(out)


def _preamble() -> list[str]:
    lines = [
        "All are taken at a minimum in evaluation mode (dropout off, BatchNorm on the statistics of the training set),",
        "on the training loss unless their name says otherwise. A value comes with its standard error, 0 where it is",
        "exact, and a status: `ok`, `not_converged`, `undefined`, `unresolved` (below floating-point resolution) or",
        "`failed`. Settings are keys in YAML: `metrics: [{regret: {minibatch_size: [1, 10]}}]`; a list where one value",
        "is due gives one row a value. K is the number of minima that are measured together.\n",
        "What a metric claims to survive (`invariant`):\n",
    ]
    return [*lines, *(f"- `{name}`: {text}" for name, text in INVARIANCE.items()), ""]


def _family(entry: registry.Entry) -> str:
    package, _, family = entry.function.__module__.rpartition(".")
    return family if package == "landscape_cli.metrics" else ""


def _metric(entry: registry.Entry) -> str:
    head, _, rest = (inspect.getdoc(entry.function) or "").partition("\n")
    settings = ", ".join(f"`{k}: {_yaml(v)}`" for k, v in entry.defaults.items()) or "none"
    default = "yes" if entry.facts["default"] else "only by name, or with `metrics: all`"
    facts = [
        f"- settings and defaults: {settings}",
        f"- invariant: {'; '.join(map(_claim, *zip(*registry.claims(entry).items(), strict=True)))}",
        f"- direction: {registry.DIRECTIONS[entry.facts['direction']]}",
        *([f"- needs of the loss: {needed}"] if (needed := registry.needed(entry)) else []),
        f"- cost: {entry.facts['cost']}",
        f"- measured by default: {default}",
        f"- source: {entry.facts['source']}",
    ]
    body = f"\n```text\n{rest.strip(chr(10))}\n```\n" if rest.strip() else ""
    return f"### {entry.name}\n\n{head}\n{body}\n" + "\n".join(facts) + "\n"


def _claim(where: str, what: list[str]) -> str:
    names = ", ".join(f"`{name}`" for name in what)
    return f"`{where}`: {names}" if where else names


def _yaml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def optimizers_page() -> str:
    """The reference of the optimizers that come with the package, with what is said of each setting."""
    lines = [
        "Their settings are keys of `training:`, beside `lr` and the others in [configuration](configuration.md):",
        "`training: {optimizer: adam, lr: 0.001, batch_size: 10, beta1: 0.8}`. A setting that does nothing with the",
        "chosen optimizer is an error, unless a grid sweeps `training.optimizer`. Runs that differ only in what is",
        "marked with a star, or in `lr`, are trained together. `training.sharpness_aware` goes around any of them.",
        "One of your own is a function in a [plugin](plugins.md).\n",
    ]
    own = [entry for entry in registry.REGISTRY["optimizer"].values() if entry.built_in]
    return "\n".join([NOTE, "# Optimizers\n", *lines, *map(_optimizer, own)])


def _optimizer(entry: registry.Entry) -> str:
    about, star = registry.describe(entry), r"\*"
    rows = [
        f"| `{o['name']}`{star * (o['name'] in entry.per_run)} | `{flow(o['default'])}` "
        f"| {o['type'].replace('|', 'or')} | {o['meaning'].rstrip('.')} |"
        for o in about["options"]
    ]
    table = ["| key | default | type | meaning |", "|---|---|---|---|", *rows]
    return f"## {entry.name}\n\n{entry.summary}\n\n" + "\n".join(table) + f"\n\nSource: {about['source']}\n"


def commands_page() -> str:
    """The reference of all commands, from the same declarations as `--help` (whose layout changes with its library)."""
    out = [NOTE, "# Commands\n", "`landscape COMMAND --help` says the same in the terminal.\n"]
    for info in cli.app.registered_commands:
        assert info.callback is not None
        out.append(_command(info.name or info.callback.__name__, info.callback))
    for group in cli.app.registered_groups:
        for info in group.typer_instance.registered_commands if group.typer_instance else ():
            assert info.callback is not None
            out.append(_command(f"{group.name} {info.name or info.callback.__name__}", info.callback))
    return "\n".join(out)


def _command(name: str, function: cli.Command) -> str:
    hints = get_type_hints(function, function.__globals__, include_extras=True)
    arguments, options = [], []
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        about = next(a for a in hint.__metadata__ if isinstance(a, (OptionInfo, ArgumentInfo)))
        needed = parameter.default is parameter.empty
        if isinstance(about, ArgumentInfo):
            word = about.metavar or parameter.name.upper()
            arguments.append(word if needed else f"[{word}]")
        else:
            options.append(_option(about, hint.__origin__, parameter.default))
    examples = [line.strip() for line in (inspect.getdoc(function) or "").splitlines() if line.startswith("Example: ")]
    text = [line for line in (inspect.getdoc(function) or "").splitlines() if not line.startswith("Example: ")]
    shell = "\n".join([f"landscape {name} {' '.join([*arguments, '[OPTIONS]'])}", *(e[9:] for e in examples)])
    table = ["| option | meaning |", "|---|---|", *options]
    return f"## {name}\n\n" + "\n".join(text).strip() + f"\n\n```sh\n{shell}\n```\n\n" + "\n".join(table) + "\n"


def _option(about: OptionInfo, kind: object, default: object) -> str:
    word = about.metavar or {bool: "", int: "N"}.get(_plain(kind), "|".join(_choices(kind)) or "TEXT")  # type: ignore[call-overload]
    names = [
        n for n in (about.default, *(about.param_decls or ())) if isinstance(n, str)
    ]  # typer keeps the first apart
    flag = " ".join(filter(None, [*names, word])).replace("|", "\\|")
    shown = "" if default in (None, False) else f" Default: `{default}`."
    return f"| `{flag}` | {about.help}{shown} |"


def _plain(kind: object) -> object:
    inner = [a for a in getattr(kind, "__args__", ()) if a is not type(None)]
    return inner[0] if inner and getattr(kind, "__origin__", None) is None else kind


def _choices(kind: object) -> list[str]:
    return [str(a) for a in getattr(kind, "__args__", ()) if isinstance(a, str)]


def beside(name: str) -> str:
    """The page that a file beside this one makes from reference tables."""
    spec = spec_from_file_location(f"docs_{name}", HERE / f"{name}.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    text: str = module.page()
    return text


def results_page() -> str:
    """What stands in a results folder: the columns of runs.csv."""
    note = NOTE.replace("the docstrings in landscape_cli", "landscape_cli/store/columns.py")
    lines = [note, "# Results\n", "`runs.csv` has a row a run. A missing number is empty, never 0.\n"]
    lines += ["| column | type | meaning |", "|---|---|---|"]
    for column in RUN_COLUMNS:
        kind = {"str": "text", "Int64": "whole number", "float64": "number"}[column.type]
        lines.append(f"| `{column.name}` | {kind} | {column.meaning} |")
        if column.name == "seed":
            lines.append(f"| `training.lr`, ... | | each {SWEPT}, by its dotted key |")
    return "\n".join(lines) + "\n"


def surfaces_page() -> str:
    """docs/surfaces.md as it stands, with the table of kinds from the code."""
    text = (HERE / "surfaces.md").read_text("utf-8")
    before, _, rest = text.partition(KINDS)
    _, _, after = rest.partition(END)
    rows = ["| kind | what it is | needs | BatchNorm | options and defaults |", "|---|---|---|---|---|"]
    return "\n".join([before + KINDS, *rows, *map(_kind, registry.REGISTRY["surface"].values()), END]) + after


def _kind(entry: registry.Entry) -> str:
    facts = entry.facts
    needs = ", ".join({"other": "a second minimum", "snapshots": "snapshots"}[name] for name in facts["needs"])
    options = ", ".join(f"`{k}: {_yaml(v)}`" if v is not None else f"`{k}`" for k, v in facts["options"].items())
    return f"| `{entry.name}` | {entry.summary} | {needs or '-'} | `{facts['batchnorm']}` | {options} |"


KINDS, END = "<!-- kinds: made by `python docs/generate.py` from @surface -->", "<!-- end -->"
PAGES = {"metrics.md": metrics_page, "optimizers.md": optimizers_page}
PAGES |= {"commands.md": commands_page, "results.md": results_page}
PAGES["surfaces.md"] = surfaces_page
PAGES |= {f"{name}.md": partial(beside, name) for name in ("essay", "invariance")}


def main() -> int:
    """Write the pages, or compare them; the exit code."""
    registry.load_plugins([])
    stale = []
    for name, page in PAGES.items():
        path, text = HERE / name, page()
        if "--check" not in sys.argv[1:]:
            path.write_text(text, "utf-8")
        elif not path.is_file() or path.read_text("utf-8") != text:
            stale.append(name)
    for name in stale:
        print(f"docs/{name}: not what the code or the tables say: run `python docs/generate.py`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
