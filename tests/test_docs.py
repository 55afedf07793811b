"""The documents say what the code does: generated pages are fresh, links resolve, examples run as they stand."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from landscape_cli import cli, config, registry
from landscape_cli.config import schema
from landscape_cli.experiment import session

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


@pytest.fixture
def shelves() -> Iterator[None]:
    """Puts the shelves back as they were: plugins of a test are not to be seen by others."""
    registry.load_plugins([])
    before = {kind: dict(shelf) for kind, shelf in registry.REGISTRY.items()}
    yield
    for kind, shelf in before.items():
        registry.REGISTRY[kind].clear()
        registry.REGISTRY[kind].update(shelf)


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"checked_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def landscape(*words: str) -> int:
    return cli.app(list(words), standalone_mode=False) or 0


def test_generated_pages_are_fresh(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    generate = module_of(ROOT / "docs" / "generate.py")
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 0, capsys.readouterr().err
    monkeypatch.setitem(generate.PAGES, "metrics.md", lambda: "other")
    assert generate.main() == 1


def essay_of(folder: Path) -> str:
    return str(module_of(ROOT / "docs" / "essay.py").page(folder))


@pytest.fixture
def essay_tables(tmp_path: Path) -> Path:
    registry.load_plugins([])
    for file in (ROOT / "results" / "reference" / "essay").iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path


def test_the_essay_goes_stale_with_its_tables(monkeypatch: pytest.MonkeyPatch, essay_tables: Path) -> None:
    generate = module_of(ROOT / "docs" / "generate.py")
    assert "essay.md" in generate.PAGES
    assert essay_of(essay_tables) == (ROOT / "docs" / "essay.md").read_text("utf-8")
    table = pd.read_csv(essay_tables / "comparison.csv")
    table.loc[table["metric"] == "hessian_trace", "large_mean"] *= 2
    table.to_csv(essay_tables / "comparison.csv", index=False)
    assert essay_of(essay_tables) != (ROOT / "docs" / "essay.md").read_text("utf-8")


def test_every_metric_that_the_essay_names_exists() -> None:
    registry.load_plugins([])
    settings = {"minibatches", "train_and_test", "blocks=layer", "blocks=kernel"}
    text = (ROOT / "docs" / "essay.md").read_text("utf-8").partition("-->")[2]
    named = set(re.findall(r"`([^`\n]+)`", FENCE.sub("", text)))
    claims = set(get_args(registry.Invariance))
    assert named - settings - claims - {"small-vs-large"} - set(registry.REGISTRY["metric"]) == set()
    measured = {name for name, _ in config.measurements(session.resolve(config.read("essay")))}
    assert {name for name in named if name in registry.REGISTRY["metric"]} <= measured


def test_the_essay_says_what_its_tables_say(essay_tables: Path) -> None:
    """Directions follow from the tables: turned round they turn round, and without evidence there are none."""
    file, side = essay_tables / "comparison.csv", re.compile(r"^- \*\*(For|Against)\.\*\* (.*)\.$", re.M)
    table = pd.read_csv(file)
    told = side.findall(essay_of(essay_tables))
    assert len(told) == 8 and any("higher" in text for _, text in told)
    table.assign(cliffs_delta=-table["cliffs_delta"]).to_csv(file, index=False)
    turned = side.findall(essay_of(essay_tables))
    swap = {"For": "Against", "Against": "For"}
    assert sorted(turned) == sorted(
        (swap[which], re.sub("higher|lower", lambda w: {"higher": "lower", "lower": "higher"}[w[0]], text))
        for which, text in told
    )
    table.assign(p_holm=1.0).to_csv(file, index=False)
    unsure = essay_of(essay_tables)
    assert {text for _, text in side.findall(unsure)} == {"Nothing"}
    assert not re.search(r"\| (higher|lower) \|", unsure)
    assert "neither sharpness nor generalization differs clearly" in unsure.replace("\n", " ")


def test_every_command_option_and_metric_is_in_the_reference() -> None:
    registry.load_plugins([])
    commands, metrics = ((ROOT / "docs" / name).read_text("utf-8") for name in ("commands.md", "metrics.md"))
    names = [i.name or i.callback.__name__ for i in cli.app.registered_commands if i.callback]
    assert re.findall(r"^## (.+)", commands, re.M) == [*names, "data fetch"]
    assert "| ``" not in commands
    own = [n for n, e in registry.REGISTRY["metric"].items() if e.function.__module__.startswith("landscape_cli.")]
    assert re.findall(r"^### (\S+)", metrics, re.M) == own


def test_every_optimizer_and_its_settings_are_in_the_reference() -> None:
    registry.load_plugins([])
    page = (ROOT / "docs" / "optimizers.md").read_text("utf-8")
    own = {n: e for n, e in registry.REGISTRY["optimizer"].items() if e.built_in}
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    assert list(sections) == list(own)
    for name, entry in own.items():
        rows = re.findall(r"^\| `(\w+)`.*\| (\S[^|]*) \|$", sections[name], re.M)
        assert [key for key, meaning in rows if meaning] == list(entry.settings.model_fields), name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    local = [link.partition("#")[0] for link in links if not link.startswith(("http://", "https://", "#"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_lengths() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120
    assert len((ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines()) <= 45


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_in_documents_exist(page: Path) -> None:
    names = {i.name or i.callback.__name__ for i in cli.app.registered_commands if i.callback} | {"data"}
    shell = [text for language, text in FENCE.findall(page.read_text("utf-8")) if language == "sh"]
    used = set(re.findall(r"(?:^|&& )landscape ([a-z]+)", "\n".join(shell), re.M))
    assert used <= names


def test_readme_has_exactly_two_set_up_lines() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    lines = re.findall(r"^<!-- (\w+) -->\n```sh\n(.*?)\n```", text, re.M | re.S)
    assert [mark for mark, _ in lines] == ["main", "tests"]
    assert all("\n" not in line and line.startswith("python3 -m venv .venv && ") for _, line in lines)
    assert lines[0][1].endswith("&& landscape compare small-vs-large")
    assert lines[1][1].endswith("&& python -m pytest")


def test_ci_runs_the_test_line_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    program = re.search(r"\$\(awk '([^']+)' README.md\)", script)
    assert program and os.access(ROOT / ".ci" / "run", os.X_OK)
    found = subprocess.run(["awk", program[1], "README.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() in (ROOT / "README.md").read_text("utf-8").splitlines()
    assert found.stdout.strip().endswith("-m pytest")


@pytest.mark.parametrize("page", ["README.md", "docs/configuration.md", "docs/tutorial.md", "docs/plugins.md"])
def test_yaml_and_python_in_documents_parse(page: str, tmp_path: Path) -> None:
    for language, text in FENCE.findall((ROOT / page).read_text("utf-8")):
        if language == "python":
            compile(text, page, "exec")
        if language == "yaml":
            whole = {"name: x", "dataset: {name: digits}", "model: {name: linear}", "training: {lr: 1, batch_size: 1}"}
            keys = re.findall(r"^(\w+):", text, re.M)
            more = [line for line in sorted(whole) if line.partition(":")[0] not in keys]
            (tmp_path / "x.yaml").write_text("\n".join([text, *more]) + "\n")
            session.resolve(config.read(str(tmp_path / "x.yaml")))


def test_every_key_of_a_config_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    sections = (schema.Experiment, schema.Dataset, schema.Training, schema.Stop, schema.Audit, schema.Surface)
    keys = {key for section in sections for key in section.model_fields} - {"stop"}
    documented = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| ([^|]+) \|", text, re.M))))
    assert keys - documented == set()
    assert documented - keys == set()


@pytest.mark.parametrize("name", sorted(config.shipped()))
def test_shipped_configs_resolve_and_say_what_they_are(name: str) -> None:
    path = config.shipped()[name]
    experiment = session.resolve(config.read(name))
    assert experiment.name == name == path.stem
    assert len(config.summary(path)) > 20
    assert config.expand(experiment) and config.measurements(experiment)


def test_every_dependency_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    project = text.partition("\n[project]\n")[2].partition("\n[project.scripts]")[0]
    lines = [line for line in project.splitlines() if re.match(r'\s+"[A-Za-z]|dask = ', line)]
    assert len(lines) > 20
    assert [line for line in lines if not re.search(r"#\s*\w.{4,}$", line)] == []


@pytest.mark.filterwarnings("default::DeprecationWarning")
@pytest.mark.parametrize("script", ["training", "curvature"])
def test_benchmarks_can_be_asked_for_help(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as left:
        module_of(ROOT / "benchmarks" / f"{script}.py").main()
    assert left.value.code == 0
    assert "--repetitions" in capsys.readouterr().out


def test_the_example_runs_from_yaml_to_comparison_and_back_from_a_state_dict(
    shelves: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("my_nets.py", "own.yaml", "make_data.py"):
        shutil.copy(ROOT / "docs" / "example" / file, tmp_path)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("make_data.py")
    assert landscape("compare", "own.yaml", "--plugin", "my_nets.py", "--quiet") == 0
    own = Path("results/own")
    comparison, metrics = pd.read_csv(own / "comparison.csv"), pd.read_csv(own / "metrics.csv")
    assert {"regret", "hessian_top", "near_zero"} <= set(comparison["metric"])
    assert (metrics["status"] == "ok").all() and (own / "report.html").stat().st_size > 10_000

    minimum = sorted((own / "minima").glob("*.safetensors"))[0]
    state = {name: t for name, t in load_file(minimum).items() if not name.startswith("initial/")}
    torch.save(state, "theirs.pt")
    wanted = ("--plugin", "my_nets.py", "--metrics", "test_accuracy,hessian_top,regret,near_zero", "--quiet")
    assert landscape("measure", "theirs.pt", "--config", "own.yaml", *wanted, "--results", "a") == 0
    assert landscape("measure", str(minimum), *wanted, "--results", "b") == 0
    theirs, ours = (pd.read_csv(next(Path(folder).glob("*/metrics.csv"))) for folder in ("a", "b"))
    shown = [t[~t["metric"].str.startswith("_shared")] for t in (theirs, ours)]
    assert len(shown[0]) == 6
    columns = ["metric", "setting", "value", "standard_error", "status"]
    pd.testing.assert_frame_equal(shown[0][columns], shown[1][columns])

    both = metrics[metrics["run_id"] == minimum.stem].merge(shown[1], on=["metric", "setting"])
    assert set(both["metric"]) == {"test_accuracy", "hessian_top", "regret", "near_zero"}  # alone as in its stack:
    np.testing.assert_allclose(both["value_x"], both["value_y"], rtol=1e-3)
