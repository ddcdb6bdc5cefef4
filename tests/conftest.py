"Runs in processes of their own, in a workspace of their own."
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lab import Lab

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}      # before torch: forked children need it
sys.path.insert(0, str(Path(__file__).parent))


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


class Workspace:
    "A folder with settings.ini, and commands that run in it."

    def __init__(self, folder: Path):
        self.folder, self.started = folder, []
        (folder/"settings.ini").write_text("[imgcls]\n")

    @property
    def environment(self) -> dict[str, str]:
        return dict(os.environ, PYTHONUNBUFFERED="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", PYTHONFAULTHANDLER="1")

    def start(self, *words: str) -> subprocess.Popen:
        "Start imgcls-train; its lines can be read while it runs."
        return self.launch(str(Path(sys.executable).parent/"imgcls-train"), *words, stderr=subprocess.STDOUT)

    def launch(self, *command: str, stderr: int = subprocess.PIPE) -> subprocess.Popen:
        "Start a command in a group of its own; what is left of it at the end of the tests is killed."
        self.started.append(subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True,
                                             stdout=subprocess.PIPE, stderr=stderr, start_new_session=True))
        return self.started[-1]

    def run(self, *words: str, code: int = 0) -> str:
        "Run imgcls-train to its end; what it printed."
        process = self.start(*words)
        printed = output_of(process)[0]
        assert process.returncode == code, printed
        return printed

    def python(self, code: str, *words: str) -> str:
        "Run some Python."
        process = self.launch(sys.executable, "-c", code, *words)
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
