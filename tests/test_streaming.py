"Answers about many images: real processes, killed at random instants and called again; several that share the work."
import os
import random
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from conftest import output_of
from PIL import Image
from test_resume import finish, start

from imgcls import DataError
from imgcls.core import ConfigError
from imgcls.evaluation import read_predictions
from imgcls.networks import ModelConfig, build_network
from imgcls.predictor import Predictor
from imgcls.strategies import Team, strategies
from imgcls.streaming import Job, Written, predict_to
from imgcls.tables import CSV
from imgcls.transforms import TransformConfig, build_transform

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and kills")
SUFFIXES = (".csv", ".jsonl", ".parquet")
N, BROKEN = 150, (3, 77)        # images; those that cannot be read
KILLS = {0: 7, 1: 4}            # of each format, without a worker and with one: 33 in all


def predictor() -> Predictor:
    network = build_network(ModelConfig(architecture="tiny_net", weights=None), 3, seed=0)
    return Predictor(network, build_transform(TransformConfig(resize=(32, 32)), "test"), ["ant", "bee", "cat"],
                     batch_size=4)


def ask(photos: Path, out: Path, **more) -> Written: return predict_to(predictor(), out, photos, chunk=8, **more)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(N): Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder/f"{i:03}, é.png")
    for i in BROKEN: (folder/f"{i:03}, é.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    "What calls write that nobody ended."
    folder = tmp_path_factory.mktemp("whole")
    for suffix in SUFFIXES:
        written = ask(photos, folder/f"out{suffix}")
        assert (written.n, written.n_errors, written.found) == (N, len(BROKEN), 0)
    return {suffix: (folder/f"out{suffix}").read_bytes() for suffix in SUFFIXES}


def timed(job: Callable[[], object], log: Path) -> float:
    since = time.monotonic()
    assert finish(start(job, log), 30) == 0, log.read_text()
    return time.monotonic() - since


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("workers", [0, 1])
def test_killed_again_and_again_is_as_never_stopped(suffix, workers, photos, whole, tmp_path):
    "At any moment, also while a worker loads images."
    out, log, rng = tmp_path/f"out{suffix}", tmp_path/"log", random.Random(f"{suffix} {workers}")
    call = lambda: ask(photos, out, num_workers=workers)
    seconds = timed(call, log)
    out.unlink()
    kills = parts = 0
    for _ in range(60):
        if kills == KILLS[workers]: break
        pid = start(call, log)
        time.sleep(rng.uniform(0, seconds/3))
        os.killpg(pid, signal.SIGKILL) if _leads(pid) else os.kill(pid, signal.SIGKILL)
        kills += finish(pid, 30) == -signal.SIGKILL
        now = len([*tmp_path.glob(f"out*.parts/0*[0-9]{suffix}")])
        assert out.exists() or now >= parts         # nothing that was made is lost
        parts = now
        if out.exists():                # it was faster: from the beginning
            assert out.read_bytes() == whole[suffix]
            out.unlink()
            parts = 0
    assert kills == KILLS[workers]
    timed(call, log)
    assert out.read_bytes() == whole[suffix]
    assert {file.name for file in tmp_path.iterdir()} == {out.name, f"{out.name}.json", "log"}


def _leads(pid: int) -> bool:
    "Is the child in a group of its own already?"
    with suppress(ProcessLookupError): return os.getpgid(pid) == pid
    return False


def dead(*args: object, **more: object) -> None: os.kill(os.getpid(), signal.SIGKILL)


def half(self: CSV, parts: list[Path], file: IO[bytes]) -> None:
    file.write(b"half of it")
    file.flush()
    dead()


def unnamed(before: str, after: str) -> None:
    "As `os.replace`, until the file gets its name."
    if Path(after).name == "out.csv": dead()
    os.rename(before, after)


@pytest.mark.parametrize(("where", "name", "instead"), [(CSV, "join", half), (os, "replace", unnamed),
                                                         (shutil, "rmtree", dead)])
def test_killed_at_the_end(where, name, instead, photos, whole, tmp_path):
    "While parts become one file, before it has its name, and before they go."
    def call() -> None:
        setattr(where, name, instead)
        ask(photos, tmp_path/"out.csv")

    pid = start(call, tmp_path/"log")
    assert finish(pid, 30) == -signal.SIGKILL, (tmp_path/"log").read_text()
    assert (tmp_path/"out.csv").exists() == (name == "rmtree")
    again = ask(photos, tmp_path/"out.csv")
    assert (again.found, again.n_errors) == (N, 2)
    assert (tmp_path/"out.csv").read_bytes() == whole[".csv"]
    assert {file.name for file in tmp_path.iterdir()} == {"out.csv", "out.csv.json", "log"}


def test_an_interrupt_goes_on_later(photos, whole, tmp_path):
    "Ctrl-C reaches the whole group, workers too."
    out = tmp_path/"out.csv"
    pid = start(lambda: ask(photos, out, num_workers=1), tmp_path/"log")
    until = time.monotonic() + 20
    while not [*tmp_path.glob("out.csv.parts/0*.csv")] and time.monotonic() < until: time.sleep(0.005)
    os.killpg(pid, signal.SIGINT)
    assert finish(pid, 30) == 1 and not out.exists()
    again = ask(photos, out)
    assert 0 < again.found < N and out.read_bytes() == whole[".csv"]


SCRIPT = """
import os, sys
from pathlib import Path
from imgcls.networks import ModelConfig, build_network
from imgcls.predictor import Predictor
from imgcls.transforms import TransformConfig, build_transform
photos, out = Path(sys.argv[1]), Path(sys.argv[2])
network = build_network(ModelConfig(architecture='tiny_net', weights=None), 3, seed=0)
predictor = Predictor(network, build_transform(TransformConfig(resize=(32, 32)), 'test'), ['ant', 'bee', 'cat'],
                      batch_size=4)
written = predictor.predict_to(out, photos, chunk=8, strategy='accelerate')
readable = [file for file in sorted(photos.iterdir()) if file.stat().st_size > 10]
said = predictor.predict(readable, strategy='accelerate')
assert said.agreement.greatest_difference == 0 and said.agreement.n == said.agreement.n_equal > 0
print(written)
said.to_csv(out.with_suffix('.' + os.environ['RANK']))
"""


def test_two_processes_give_the_rows_of_one(workspace, photos, whole, tmp_path):
    "As torchrun starts them. Both have all answers."
    out, script = tmp_path/"out.csv", workspace.folder/"script.py"
    script.write_text(SCRIPT)
    process = workspace.launch(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                               str(script), str(photos), str(out))
    printed, errors = output_of(process, 80)
    assert process.returncode == 0, errors
    assert printed.count("labels as standard, probabilities the same bits") == 2
    assert out.read_bytes() == whole[".csv"]
    readable = [file for file in sorted(photos.iterdir()) if file.stat().st_size > 10]
    for rank in "01":
        assert np.array_equal(read_predictions(out.with_suffix(f".{rank}")).probabilities,
                              predictor().predict(readable).probabilities)


def two(job: Callable[[int], object], folder: Path) -> list[int]:
    "Two processes of Accelerate, forked."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def of(rank: str) -> None:
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        job(int(rank))

    return [start(partial(of, rank), folder/f"log{rank}") for rank in "01"]


def told(photos: Path, out: Path, place: Path) -> None:
    "Ask with the others; the error is written down."
    try: ask(photos, out, strategy="accelerate")
    except Exception as error:
        place.write_text(str(error))
        raise


def killed() -> None: os.kill(os.getpid(), signal.SIGKILL)
def failing() -> None: raise RuntimeError("burst")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("death", [killed, failing])
def test_one_of_two_processes_dies_and_later_both_go_on(death, rank, photos, whole, tmp_path):
    "The other one is not left waiting; what both have made stays."
    out, save, made = tmp_path/"out.csv", Job.save, []

    def dies(self: Job, *args: object) -> None:
        made.append(1)
        if len(made) == 4: death()
        save(self, *args)

    def work(mine: int) -> None:
        if mine == rank: Job.save = dies
        try: ask(photos, out, strategy="accelerate")
        except Exception as error:
            (tmp_path/f"error{mine}").write_text(str(error))
            raise

    pids = two(work, tmp_path)
    assert finish(pids[rank], 30) == (1 if death is failing else -signal.SIGKILL)
    assert finish(pids[1 - rank], 30) == 1
    said = (tmp_path/f"error{1 - rank}").read_text()
    assert f"process {rank} of 2: RuntimeError: burst" in said if death is failing else "has ended" in said
    assert not out.exists() and len([*tmp_path.glob("out.csv.parts/0*.csv")]) >= 3
    def again(mine: int) -> None:
        written = ask(photos, out, strategy="accelerate")
        assert written.found >= 3*8 and written.agreement.greatest_difference == 0

    assert [finish(pid, 30) for pid in two(again, tmp_path)] == [0, 0]
    assert out.read_bytes() == whole[".csv"]


def test_a_process_that_nobody_has_waited_for_is_gone(photos, tmp_path):
    "A zombie: its parent has other things to do."
    save = Job.save

    def work(mine: int) -> None:
        if mine == 1: Job.save = dead
        else: Job.save = lambda self, *args: (time.sleep(1), save(self, *args))     # the other is gone by then
        told(photos, tmp_path/"out.csv", tmp_path/f"error{mine}")

    first, second = two(work, tmp_path)
    assert finish(first, 40) == 1 and "has ended" in (tmp_path/"error0").read_text()
    assert finish(second, 1) == -signal.SIGKILL


@pytest.mark.parametrize("which", ["name", "folder"])
def test_processes_with_another_path_do_not_wait_for_each_other(which, photos, tmp_path, monkeypatch):
    "Said in all of them: names of one machine at once, an own disk of each as soon as it has been looked for."
    monkeypatch.setattr("imgcls.streaming.SHARED", 1)

    def work(mine: int) -> None:
        out = tmp_path/("out.csv" if which == "name" else "disk/out.csv")
        if which == "name": out = out.with_name(f"out{mine}.csv")
        else:
            monkeypatch.setattr("platform.node", lambda: f"node {mine}")
            if mine: monkeypatch.setattr(Job, "__init__", elsewhere)
        told(photos, out, tmp_path/f"error{mine}")

    def elsewhere(self: Job, out: Path, *args: object) -> None:
        init(self, out, *args)
        self.parts = tmp_path/"other disk"/"out.csv.parts"

    init = Job.__init__
    (tmp_path/"disk").mkdir()
    assert [finish(pid, 30) for pid in two(work, tmp_path)] == [1, 1]
    said = [(tmp_path/f"error{rank}").read_text() for rank in (0, 1)]
    if which == "name": assert all("same arguments. Got \"`path` '" in text for text in said), said
    else: assert all("must write into the same folder" in text for text in said), said


def test_two_callers_do_not_share_a_file(photos, tmp_path):
    out, log = tmp_path/"out.csv", tmp_path/"log"
    def slowly() -> None:
        save = Job.save
        Job.save = lambda self, *args: (save(self, *args), time.sleep(20))
        ask(photos, out)

    pid, until = start(slowly, log), time.monotonic() + 20
    while not [*tmp_path.glob("out.csv.parts/0*.csv")] and time.monotonic() < until: time.sleep(0.01)
    try:
        with pytest.raises(ConfigError, match="is being written by another process already"): ask(photos, out)
    finally:
        os.kill(pid, signal.SIGKILL)
        finish(pid, 30)
    assert ask(photos, out).found == 8              # the lock went with its owner


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_nothing_half_written(suffix, photos, whole, tmp_path):
    "A limit on the size of a file, below that of the whole."
    out = tmp_path/f"out{suffix}"
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole[suffix])*2 // 3, resource.RLIM_INFINITY))
        with pytest.raises(DataError, match=r"Cannot write .* call again"): ask(photos, out)

    timed(limited, tmp_path/"log")
    assert not out.exists() and not [*tmp_path.rglob("*.tmp")]
    assert ask(photos, out).found == N and out.read_bytes() == whole[suffix]


def test_a_folder_that_cannot_be_written(photos, tmp_path):
    if os.geteuid() == 0:
        place = Path("/proc")               # root may write anywhere else
        with pytest.raises(DataError, match=r"Cannot write '/proc/out\.csv\.parts'"): ask(photos, place/"out.csv")
        return
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="Cannot write"): ask(photos, tmp_path/"out.csv")
    tmp_path.chmod(0o700)
    assert not [*tmp_path.iterdir()]


def test_images_that_vanish_are_rows(photos, tmp_path):
    "And where none can be read the call ends, and says so."
    paths = [*map(str, sorted(photos.iterdir())[:20]), str(tmp_path/"gone.png")]
    written = predict_to(predictor(), tmp_path/"out.csv", paths, chunk=8, num_workers=1)
    assert (written.n, written.n_errors) == (21, 2)
    assert dict(written.errors)[paths[20]] == "there is no such file"
    none = predict_to(predictor(), tmp_path/"none.parquet", [str(tmp_path/f"{i}.png") for i in range(10)])
    assert (none.n, none.n_errors, len(none.errors)) == (10, 10, 10)


def test_a_strategy_that_fails_says_where(photos, tmp_path):
    def broken(one: Predictor) -> tuple[Predictor, Team]: raise ConfigError("not here")
    strategies.register(broken, "broken")
    with pytest.raises(ConfigError, match="not here"): ask(photos, tmp_path/"out.csv", strategy="broken")
    assert not [*tmp_path.iterdir()]


def test_a_network_without_a_number_is_a_row(tmp_path):
    class Doubtful(torch.nn.Module):
        def forward(self, images): return images.mean((2, 3))/(images.mean((1, 2, 3)) > 0.5).float()[:, None]

    transform = build_transform(TransformConfig(resize=(8, 8), normalize=None), "test")
    bright, dark = np.full((8, 8, 3), 250, np.uint8), np.full((8, 8, 3), 3, np.uint8)
    written = predict_to(Predictor(Doubtful(), transform, ["a", "b", "c"]), tmp_path/"out.jsonl", [bright, dark])
    assert written.errors == [("image 1", "the network's answer is no number (NaN or infinite)")]
