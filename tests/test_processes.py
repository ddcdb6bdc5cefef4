"One run on several processes: the same as on one, whatever happens to them."
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import together
import torch
from conftest import Workspace

pytest.importorskip("torch.distributed")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    "A workspace, and this process in it: the processes of a team are forked from here."
    folder, before = tmp_path_factory.mktemp("processes"), os.getcwd()
    Workspace(folder)
    os.chdir(folder)
    yield folder
    os.chdir(before)


def ran(n: int, work: str, folder: Path) -> Path:
    "What so many processes leave behind."
    folder.mkdir(exist_ok=True)
    codes = together.finished(together.start(n, getattr(together, work), folder))
    assert codes == [0] * n
    return folder
