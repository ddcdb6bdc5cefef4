"Runs in processes of their own, in a workspace of their own."
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from forks import Fork
from PIL import Image

if TYPE_CHECKING:
    from lab import Lab

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}      # before torch: forked children need it
sys.path.insert(0, str(Path(__file__).parent))


BIN = Path(sys.executable).parent
LIMIT = 240     # seconds for one process; pytest's own limit for a test lies above it


def output_of(process: subprocess.Popen, seconds: float = LIMIT) -> tuple[str, str]:
    "What a process prints to its end; one that hangs says where, and is ended with all it has started."
    try: return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill(process, signal.SIGABRT)           # faulthandler prints every stack
        try: said = process.communicate(timeout=10)
        except subprocess.TimeoutExpired: said = ("", "")
        kill(process)
        raise AssertionError(f"a process has not ended in {seconds:g} s: {said}") from None


def kill(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    "A signal to a process and to all in its group."
    with suppress(ProcessLookupError): os.killpg(process.pid, number)


def few_digits(workspace: Path) -> None:
    "A small folder where `--config digits` looks for its images: noise of four brightnesses, no network tells all."
    folder, rng = workspace/"data"/"digits", np.random.default_rng(0)
    for kind in range(4):
        (folder/str(kind)).mkdir(parents=True)
        for i in range(75):
            pixels = rng.integers(10 * kind, 10 * kind + 160, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder/str(kind)/f"{i}.png")


class Workspace:
    "A folder with settings.ini, and commands that run in it."

    def __init__(self, folder: Path):
        self.folder, self.started = folder, []
        (folder/"settings.ini").write_text("[imgcls]\n")

    def few_digits(self) -> None: few_digits(self.folder)

    @property
    def environment(self) -> dict[str, str]:
        return dict(os.environ, PYTHONUNBUFFERED="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", PYTHONFAULTHANDLER="1")

    def start(self, *words: str, fresh: bool = False) -> subprocess.Popen:
        "Start imgcls-train; its lines can be read while it runs."
        return self.launch(str(BIN/"imgcls-train"), *words, stderr=subprocess.STDOUT, fresh=fresh)

    def launch(self, *command: str, stderr: int = subprocess.PIPE, fresh: bool = False) -> subprocess.Popen:
        "Start a command in a group of its own; what is left of it at the end of the tests is killed."
        program = Path(command[0])
        ours = sys.platform == "linux" and program.parent == BIN and (
            program.name.startswith("imgcls-") or program == Path(sys.executable))
        if ours and not fresh: kind, words = Fork, command[1:] if program == Path(sys.executable) else command
        else: kind, words = subprocess.Popen, command
        self.started.append(kind(words, cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE,
                                 stderr=stderr, start_new_session=True))
        return self.started[-1]

    def run(self, *words: str, code: int = 0, fresh: bool = False) -> str:
        "Run imgcls-train to its end; what it printed."
        process = self.start(*words, fresh=fresh)
        printed = output_of(process)[0]
        assert process.returncode == code, printed
        return printed

    def python(self, code: str, *words: str, fresh: bool = False) -> str:
        "Run some Python."
        process = self.launch(sys.executable, "-c", code, *words, fresh=fresh)
        printed, errors = output_of(process)
        assert process.returncode == 0, errors
        return printed

    def close(self) -> None:
        for process in self.started: kill(process)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path)
    yield workspace
    workspace.close()


@pytest.fixture(scope="module")
def shared_workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    yield workspace
    workspace.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Lab]":
    "One JupyterLab and one browser for all tests."
    from lab import Lab, missing
    if why := missing():
        if os.environ.get("IMGCLS_NEED_BROWSER") == "1": pytest.fail(why)
        pytest.skip(why)
    with Lab(tmp_path_factory.mktemp("lab")) as lab: yield lab
