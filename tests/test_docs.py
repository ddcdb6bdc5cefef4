"`make docs` finds Quarto or says how to get it; it installs nothing."
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKE = shutil.which("make")


def program(file: Path, text: str) -> Path:
    "A shell script, ready to run."
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def clone(tmp_path) -> Path:
    "The Makefile, and a nbdev-docs that notes that it was called and asks quarto to render."
    for name in ("Makefile", "pyproject.toml"): shutil.copy(ROOT/name, tmp_path)
    program(tmp_path/".venv/bin/nbdev-docs", f"echo staged >> {tmp_path}/calls && quarto render")
    (tmp_path/".venv/.installed").touch()
    return tmp_path


def make_docs(clone: Path, path: str, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run([MAKE, "docs", *more], cwd=clone, env=os.environ | {"PATH": path}, capture_output=True,
                          text=True, timeout=60)


@pytest.mark.parametrize("told", [False, True])
def test_quarto_is_found(clone, told):
    quarto = program(clone/"elsewhere/quarto", f'echo "quarto $@" >> {clone}/calls')
    path = os.defpath if told else f"{quarto.parent}{os.pathsep}{os.defpath}"
    done = make_docs(clone, path, *([f"QUARTO={quarto}"] if told else []))
    assert done.returncode == 0, done.stderr
    assert (clone/"calls").read_text().splitlines() == ["staged", "quarto render"]


@pytest.mark.parametrize("more", [[], ["QUARTO=/nowhere/quarto"]])
def test_without_quarto_it_says_how_to_get_it(clone, more):
    (clone/"empty").mkdir()
    done = make_docs(clone, str(clone/"empty"), *more)
    assert done.returncode == 2
    assert "make docs needs Quarto" in done.stderr and "1.7.34" in done.stderr and "QUARTO=" in done.stderr
    assert not (clone/"calls").exists()         # nbdev, which would fetch it and ask for root, was not called
