"""The command line: help that teaches, results on standard output, errors as one message with an exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from giblet.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_check_accepts_a_good_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", str(ROOT / "configs/prod.yaml")]) == 0
    assert "good (run giblet_production)" in capsys.readouterr().out


def test_check_refuses_with_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", str(ROOT / "configs/prod.yaml"), "--set", "training.epoch=3"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "did you mean epochs?" in captured.err


def test_show_prints_what_a_run_would_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", str(ROOT / "configs/prod.yaml"), "--set", "training.epochs=3"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["training"]["epochs"] == 3
    assert main(["config", "show", str(ROOT / "configs/prod.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["epochs"] == 500


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert "config" in json.loads(capsys.readouterr().out)["properties"]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from giblet.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'boto3', 'nibabel', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "exit codes" in done.stdout


def test_verifying_imports_no_torch(tmp_path: Path) -> None:
    """It is most of what a small checkpoint would wait for, and of the memory."""
    path = tmp_path / "weights.safetensors"
    save_file({"weight": np.arange(1.0, 100.0, dtype=np.float32)}, path)
    code = (
        "import sys\n"
        "from giblet.cli import main\n"
        f"main(['verify', {str(path)!r}])\n"
        "heavy = {'torch', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "SAFE" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train"], 2, "name a BIDS folder"),
        (["prepare", "{tmp}/absent"], 65, "absent"),
        (["verify", "{tmp}/absent.safetensors"], 66, "no such file"),
        (["evaluate", "--out", "{tmp}/report"], 2, "name a BIDS folder"),
        (["config", "check", "{tmp}/absent.yaml"], 2, "no such file"),
        (["example", "{tmp}/example", "--resolution-mm", "7"], 2, "resolution"),
    ],
)
def test_each_verb_says_what_is_wrong_and_ends_with_its_code(
    arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([part.format(tmp=tmp_path) for part in arguments]) == code
    captured = capsys.readouterr()
    assert "giblet: error:" in captured.err
    assert said in captured.err.replace("\n", " ")
    assert captured.out == ""


def test_a_verb_without_config_reads_the_pods(tmp_path, monkeypatch, capsys):
    """In a pod of the chart GIBLET_CONFIG names the file; `--config` wins over it."""
    for name in ("pod", "given"):
        (tmp_path / f"{name}.yaml").write_text(f"config: {{checkpoint: {{url: {tmp_path / name}}}}}")
    monkeypatch.setenv("GIBLET_CONFIG", str(tmp_path / "pod.yaml"))
    assert main(["runs"]) == 0
    assert f"no runs under {tmp_path / 'pod'}" in capsys.readouterr().out
    assert main(["runs", "--config", str(tmp_path / "given.yaml")]) == 0
    assert f"no runs under {tmp_path / 'given'}" in capsys.readouterr().out


def test_the_first_process_of_a_container_ends_when_asked_to_while_it_imports(tmp_path: Path) -> None:
    """Linux gives it no default action, so that a pod deleted in its first seconds stayed for its grace period."""
    if shutil.which("unshare") is None:
        pytest.skip("no program `unshare` here (util-linux, on Linux)")
    words = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    possible = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    if possible.returncode:
        pytest.skip(f"no process namespaces here: {possible.stderr}")
    begun = tmp_path / "begun"
    (tmp_path / "torch.py").write_text(f"import time\nopen({str(begun)!r}, 'w').close()\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen([*words, sys.executable, "-m", "giblet", "train"], env=environment) as outside:
        while not begun.exists():
            assert outside.poll() is None, "ended without importing torch"
            time.sleep(0.01)
        (inside,) = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()
        os.kill(int(inside), signal.SIGTERM)
        try:
            assert outside.wait(30) == 143
        finally:
            outside.kill()
