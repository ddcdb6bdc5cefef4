"Runs in processes of their own, in a workspace of their own."
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lab import Lab

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}      # before torch: forked children need it
sys.path.insert(0, str(Path(__file__).parent))


class Workspace:
    "A folder with settings.ini, and commands that run in it."

    def __init__(self, folder: Path):
        self.folder = folder
        (folder/"settings.ini").write_text("[imgcls]\n")

    @property
    def environment(self) -> dict[str, str]:
        return dict(os.environ, PYTHONUNBUFFERED="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

    def start(self, *words: str) -> subprocess.Popen:
        "Start imgcls-train; its lines can be read while it runs."
        command = [str(Path(sys.executable).parent/"imgcls-train"), *words]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)

    def run(self, *words: str, code: int = 0) -> str:
        "Run imgcls-train to its end; what it printed."
        process = self.start(*words)
        printed = process.communicate(timeout=300)[0]
        assert process.returncode == code, printed
        return printed

    def python(self, code: str, *words: str) -> str:
        "Run some Python."
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=self.folder, env=self.environment, text=True,
                              capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace: return Workspace(tmp_path)


@pytest.fixture(scope="module")
def shared_workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Lab]":
    "One JupyterLab and one browser for all tests."
    from lab import Lab, missing
    if why := missing():
        if os.environ.get("IMGCLS_NEED_BROWSER") == "1": pytest.fail(why)
        pytest.skip(why)
    with Lab(tmp_path_factory.mktemp("lab")) as lab: yield lab
