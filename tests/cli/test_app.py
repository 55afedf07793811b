"""The command line: start-up, help, exit codes, streams; wrong configs leave nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from conftest import TINY, Call, yaml_of
from filelock import FileLock

from landscape_cli import cli
from landscape_cli.experiment import train_runs

COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from landscape_cli.cli import app; app(['--help'], standalone_mode=False);"
        "heavy = {'torch', 'pandas', 'matplotlib', 'scipy', 'numpy', 'pydantic'};"
        "print(*{m.split('.')[0] for m in sys.modules} & heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "compare" in done.stdout and done.stdout.splitlines()[-1] == ""


def test_a_closed_pipe_is_silent() -> None:
    """`landscape list ... | head -c 1`, with more lines than a pipe holds."""
    code = (
        "from landscape_cli import __main__, registry\n"
        "registry.describe = lambda e: {'name': 'n' * 60, 'summary': 's' * 60}\n"
        "registry.load_plugins = lambda names: registry.REGISTRY['model'].update({str(i): None for i in range(9000)})\n"
        "__main__.run()"
    )
    command = [sys.executable, "-c", code, "list", "models"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, call: Call) -> None:
    command = COMMANDS[name]
    assert command.help and f"Example: landscape {name}" in command.help
    for parameter in command.params:
        if parameter.name != "help" and "--" in parameter.opts[0]:
            assert getattr(parameter, "help", None), f"{name} {parameter.opts[0]} has no help"
    code, out, err = call(name, "--help")
    assert code == 0 and "Usage: " in out and f"landscape {name} " in out and err == ""


def test_version_and_no_command(call: Call) -> None:
    code, out, _ = call("--version")
    assert code == 0 and out.startswith("landscape ")
    code, out, err = call()
    assert "Usage: " in out + err and "internal error" not in err


WRONG: dict[str, tuple[str, str]] = {  # key of the config, YAML of its value -> a piece of the error
    "unknown key": ("training: {lr: 0.1, batchsize: 10}", "unknown key, did you mean 'batch_size'?"),
    "wrong section": ("lr: 0.1", "training"),
    "unknown top": ("sedes: 3", "did you mean 'seeds'?"),
    "no lr": ("training: {batch_size: 10}", "training.lr"),
    "text lr": ("training: {lr: foo, batch_size: 10}", "training.lr"),
    "bool lr": ("training: {lr: true, batch_size: 10}", "training.lr"),
    "nan lr": ("training: {lr: .nan, batch_size: 10}", "training.lr"),
    "inf lr": ("training: {lr: .inf, batch_size: 10}", "training.lr"),
    "negative lr": ("training: {lr: -1, batch_size: 10}", "training.lr"),
    "batch 0": ("training: {lr: 0.1, batch_size: 0}", "training.batch_size"),
    "batch too large": ("grid: {training.batch_size: [10, 61]}", "60"),
    "unknown optimizer": ("training: {lr: 0.1, batch_size: 10, optimizer: sgdd}", "did you mean 'sgd'?"),
    "unknown dataset": ("dataset: {name: digit}", "did you mean 'digits'?"),
    "train_size": ("dataset: {name: digits, train_size: 5000}", "5000 is more than the 1000 training samples"),
    "unknown model": ("model: {name: mlpp}", "did you mean 'mlp'?"),
    "hidden": ("model: {name: mlp, hidden: [0]}", "model.hidden"),
    "model's shape": ("model: {name: cnn1d}", "does not take inputs of shape (1, 8, 8)"),
    "unknown metric": ("metrics: [hessian_tops]", "did you mean 'hessian_top'?"),
    "metric's setting": ("metrics: [{hessian_top: {kk: 1}}]", "hessian_top"),
    "seeds 0": ("seeds: 0", "seeds"),
    "seeds text": ("seeds: 0777", "seeds"),
    "precision": ("precision: float16", "did you mean"),
    "along text": ("along: 1", "along: must be true or false, got 1"),
    "name with a path": ("name: ../x", "name"),
    "absolute name": ("name: /abs", "name"),
    "long name": (f"name: {'x' * 300}", "name"),
    "empty grid": ("grid: {training.batch_size: []}", "grid"),
    "grid key": ("grid: {training.batch: [1, 2]}", "grid"),
    "compare by": ("compare: {by: training.lr}", "compare"),
    "alias": ("seeds: *x", "alias"),
    "tag": ("seeds: !!python/object/apply:os.mkdir [canary]", "tag"),
    "duplicate": ("seeds: 1\nseeds: 2", "seeds"),
    "two documents": ("---\nname: b", "document"),
    "control": ("seeds: \x07", ""),
    "unclosed": ("model: {name: mlp", ""),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_config_is_one_clear_error_and_leaves_nothing(how: str, call: Call, tmp_path: Path) -> None:
    text, piece = WRONG[how]
    key = text.split(":")[0]
    own = {k: v for k, v in (TINY | {"seeds": 1}).items() if k != key and (k, key) != ("compare", "grid")}
    (tmp_path / "wrong.yaml").write_text(yaml_of(own) + text + "\n")
    code, out, err = call("train", "wrong.yaml", "--results", "here")
    assert (code, out) == (2, ""), err
    assert piece in err and "internal error" not in err
    assert 1 <= len([line for line in err.splitlines() if not line.startswith(" ")]) <= 2
    assert not (tmp_path / "here").exists() and not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("words", "code", "due"),
    [
        (["train", "tiny.yaml", "--set", "dataset={name: npz, path: no.npz}"], 5, "dataset.path: no.npz: no such file"),
        (["train", "tinny"], 2, "config tinny: no such file or name"),
        (["train", "small-vs-larg"], 2, "did you mean 'small-vs-large'?"),
        (["train", "tiny.yaml", "--set", "training.lr"], 2, "--set"),
        (["train", "tiny.yaml", "--seeds", "0"], 2, "--seeds"),
        (["train", "tiny.yaml", "--devise", "cpu"], 2, "No such option: --devise"),
        (["train", "tiny.yaml", "--device", "mps"], 2, "--device"),
        (["train", "tiny.yaml", "--plugin", "no.py"], 2, "--plugin no.py: no such file"),
        (["trian"], 2, "trian"),
        (["train"], 2, "Missing argument"),
        (["measure", "a.pt", "--config", "tiny.yaml"], 5, "a.pt: no such checkpoint"),
        (["measure", "a.pt"], 2, "a.pt"),
        (
            ["measure", "tiny.yaml", "--along"],
            2,
            "--along: tiny keeps nothing on the way: add the epochs to keep, --set",
        ),
        (["compare", "tiny.yaml", "--set", "along=true"], 2, "along: does nothing without training.snapshots: add"),
        (["report", "nowhere"], 5, "run `landscape compare` first"),
        (["list", "cheese"], 2, "cheese"),
    ],
)
def test_usage_errors(words: list[str], code: int, due: str, call: Call, tmp_path: Path) -> None:
    left, out, err = call(*words)
    assert (left, out) == (code, "") and due in err and "internal error" not in err
    assert not (tmp_path / "results").exists()


def test_train_measure_compare_and_show(call: Call, tmp_path: Path) -> None:
    """One tour: nothing is written by --dry-run and show; --json is one object on stdout; streams are kept apart."""
    for words in (["train", "tiny.yaml", "--dry-run"], ["compare", "tiny.yaml", "--dry-run"], ["show", "tiny.yaml"]):
        code, out, err = call(*words)
        assert (code, err) == (0, "") and "0 of 2 runs trained" in out
        code, out, _ = call(*words, "--json")
        found = json.loads(out)
        assert code == 0 and found.get("plan", found)["trained"] == 0
    assert not (tmp_path / "results").exists()
    code, out, err = call("train", "tiny.yaml", "--json")
    assert (code, err) == (0, "") and [r["status"] for r in json.loads(out)["runs"]] == ["ok", "ok"]
    code, out, err = call("measure", "tiny.yaml", "--metrics", "train_loss,weight_norm", "--json")
    assert (code, err) == (0, "")
    assert [r["metric"] for r in json.loads(out)["metrics"] if not r["metric"].startswith("_")].count(
        "weight_norm"
    ) == 2
    code, out, err = call("compare", "tiny.yaml")
    assert (code, err) == (0, "") and "weight_norm" in out
    code, out, err = call("compare", "tiny.yaml", "--metrics", "path_norm", "--json")
    assert (code, err) == (0, "") and "path_norm" in {row["metric"] for row in json.loads(out)["comparison"]}
    code, out, err = call("compare", "tiny.yaml", "--metrics", "path_nrom")
    assert code == 2 and "path_norm" in err and "Traceback" not in err
    code, out, err = call("show", "tiny.yaml", "--set", "training.lr=0.2")
    assert code == 0 and "0 of 2 runs trained" in out and "--set" in out
    checkpoint = next((tmp_path / "results" / "tiny" / "minima").iterdir())
    code, out, err = call("measure", str(checkpoint), "--metrics", "weight_norm", "--json")
    assert (code, err) == (0, "") and len(json.loads(out)["metrics"]) == 1


def test_exit_3_names_what_went_wrong(call: Call) -> None:
    stop = "training.stop={train_loss: 1e-9, max_epochs: 1}"
    code, out, err = call("train", "tiny.yaml", "--set", stop)
    assert code == 3 and out.count("not_conver") == 2
    assert err.count("is above stop.train_loss=1e-09 at max_epochs=1: raise it") == 2
    code, out, err = call("compare", "tiny.yaml", "--set", stop, "--json")
    assert code == 3 and "comparison" in json.loads(out)


def test_exit_4_when_the_folder_is_in_use(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "tiny"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        code, out, err = call("train", "tiny.yaml")
    assert (code, out) == (4, "")
    assert err == "results folder results/tiny is in use by another process: wait for it, or use --results\n"


def test_an_internal_error_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("a\nb")

    monkeypatch.setattr(train_runs, "train", broken)
    code, out, err = call("train", "tiny.yaml")
    assert (code, out) == (1, "") and err.startswith("internal error: RuntimeError: a")


@pytest.mark.parametrize("what", ["metrics", "models", "datasets", "configs"])
def test_list(what: str, call: Call) -> None:
    code, out, err = call("list", what, "--json")
    names = [row["name"] for row in json.loads(out)[what]]
    assert (code, err) == (0, "") and names
    _, plain, _ = call("list", what)
    _, verbose, _ = call("list", what, "--verbose")
    assert all(name in plain and name in verbose for name in names)


def test_schema_is_json(call: Call) -> None:
    code, out, err = call("schema")
    assert (code, err) == (0, "") and "training" in json.loads(out)["properties"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["typer", "landscape_cli.cli", "pydantic", "torch"])
def test_an_early_signal_is_one_line(module: str, number: int, tmp_path: Path) -> None:
    """Ctrl-C and TERM in the middle of the imports."""
    code = f"""
import builtins, os, sys
plain, sent = builtins.__import__, []
def hooked(name, *args, **options):
    if name.startswith({module!r}) and not sent:
        sent.append(name)
        os.kill(os.getpid(), {int(number)})
    return plain(name, *args, **options)
from landscape_cli.__main__ import run
builtins.__import__ = hooked
sys.argv = ["landscape", "list", "models"]
run()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr == "interrupted: what was finished is kept; the same command goes on\n"
