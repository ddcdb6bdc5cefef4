"""Training from shards is training from files: the same images in the same order, so the same weights, killed or not.

Children are forked from this process, which has torch loaded already.
"""
import io
import os
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from imgcls import ImageData, Learner, Run
from imgcls.checkpointing import first_difference
from imgcls.cli import train_command
from imgcls.samples import write_digits
from imgcls.verification import outcome

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and kills")
SETTINGS = {"lr": 0.02, "batch_size": 8, "num_epochs": 3, "checkpoint_every": "3 steps", "progress": "pipe"}


def start(job: Callable[[], object]) -> int:
    "Run a job in a child in a process group of its own; its pid."
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        os.setpgid(0, 0)
        torch.set_num_threads(1)
        job()
        code = 0
    finally: os._exit(code)


def finish(pid: int, seconds: float = 120) -> int:
    "Wait for a child; one that hangs is killed."
    deadline = time.monotonic() + seconds
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline: os.killpg(pid, signal.SIGKILL)
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(ended[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    "Twenty images of each digit as files, and the same in three shards, in an order of their own."
    folder = tmp_path_factory.mktemp("shards")
    (folder/"settings.ini").write_text("[imgcls]\n")
    digits = write_digits(folder/"data"/"digits", of_each=20)
    rows = pd.DataFrame([(str(file), kind.name) for kind in sorted(digits.iterdir())
                         for file in sorted(kind.iterdir())],
                        columns=["path", "label"]).sample(frac=1, random_state=0)
    rows["path"] = [_named(folder, number, path) for number, path in enumerate(rows["path"])]
    rows.assign(path=[path.removeprefix(f"{folder}/") for path in rows["path"]]).to_csv(folder/"files.csv", index=False)
    (folder/"packed").mkdir()
    for number in range(3):
        with tarfile.open(folder/"packed"/f"digits-{number}.tar", "w") as archive:
            for path, label in rows.iloc[number * 70:number * 70 + 70].itertuples(index=False):
                about = tarfile.TarInfo(f"{Path(path).stem}.cls")
                about.size = len(label)
                archive.add(path, Path(path).name)
                archive.addfile(about, io.BytesIO(label.encode()))
    return folder


def _named(folder: Path, number: int, path: str) -> str:
    goal = folder/f"digits-{number // 70}.tar"/f"{number:03}{Path(path).suffix}"   # a folder, called as the shard is
    goal.parent.mkdir(exist_ok=True)
    return str(shutil.copy(path, goal))


def packed(folder: Path, name: str) -> Learner:
    os.chdir(folder)
    data = ImageData.from_tar("packed/digits-{0..2}.tar", 16, num_workers=2)
    return Learner(data, "tiny_net", name=name, **SETTINGS)


@pytest.fixture(scope="module")
def straight(folder) -> dict:
    "What training from the files ends with."
    def train() -> None:
        os.chdir(folder)
        Learner(ImageData.from_csv("files.csv", 16), "tiny_net", name="files", **SETTINGS).fit()
    assert finish(start(train)) == 0
    return outcome(folder/"runs"/"files")


def test_shards_give_the_weights_of_files(folder, straight):
    assert finish(start(lambda: packed(folder, "packed").fit())) == 0
    assert first_difference(outcome(folder/"runs"/"packed"), straight) is None
    listed = pd.read_csv(folder/"runs"/"packed"/"data.csv")
    assert listed["path"].str.contains(r"/packed/digits-[0-2]\.tar/\d+\.\w+$").all() and len(listed) == 200


def test_killed_and_resumed(folder, straight):
    "A run from shards, with workers, that is killed in the middle and taken up again."
    run = folder/"runs"/"killed"
    pid, end = start(lambda: packed(folder, "killed").fit()), time.monotonic() + 60
    while not (run/"weights"/"last.pt").exists() and time.monotonic() < end: time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    assert finish(pid) == -signal.SIGKILL
    assert Run(run).summary().status != "completed"

    def go_on() -> None:
        os.chdir(folder)
        Learner.from_run("killed", progress="pipe", num_workers=1).resume()

    assert finish(start(go_on)) == 0
    assert first_difference(outcome(run), straight) is None


def test_the_command_line(folder, straight, monkeypatch):
    "The same from a shell; and a config names the shards for the next run."
    monkeypatch.chdir(folder)
    assert finish(start(lambda: train_command(
        ["--name", "shell", "data.tar=packed/digits-*.tar", "--size", "16", "--architecture", "tiny_net", "--lr",
         "0.02",
         "--batch_size", "8", "--num_epochs", "3",
         "training.checkpoint_every=3 steps"]))) == 0
    assert first_difference(outcome(folder/"runs"/"shell"), straight) is None
