"""Resuming equals never stopping: real processes, killed at random instants, in every state of a run.

Children are forked from this process, which has torch loaded already: a kill and a resume take seconds.
"""
import faulthandler
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forks import load

from imgcls import CheckpointError, DataError, ImageData, Learner, TrainingInterrupted
from imgcls.checkpointing import first_difference
from imgcls.core import ConfigError, temporary_for
from imgcls.keeping import load_checkpoint
from imgcls.samples import write_digits
from imgcls.training import Callback, Order
from imgcls.verification import outcome

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and kills")
SETTINGS = {"lr": 0.02, "batch_size": 8, "num_epochs": 3, "accumulate": 2, "ema_decay": 0.9, "mixup_alpha": 0.3,
            "early_stopping": 50, "clip_norm": 1.0, "checkpoint_every": "3 steps", "scheduler.type": "one_cycle"}


def make(folder: Path, name: str, workers: int = 0, **more) -> Learner:
    "A run with everything that makes resuming hard."
    os.chdir(folder)
    data = ImageData.from_folder("small", size=16, num_workers=workers)
    return Learner(data, "tiny_net", name=name, progress="pipe", **SETTINGS, **more)


def again(folder: Path, name: str, workers: int = 0, **more) -> Learner:
    os.chdir(folder)
    return Learner.from_run(name, progress="pipe", num_workers=workers, **more)


def start(job: Callable[[], object], log: Path) -> int:
    "Run a job in a child in a process group of its own; its pid."
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        os.setpgid(0, 0)
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        faulthandler.enable()
        torch.set_num_threads(1)
        job()
        code = 0
    except BaseException: traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def finish(pid: int, seconds: float = 180) -> int:
    "Wait for a child; its exit code, negative for a signal. One that hangs writes its stacks to its log and is killed."
    deadline = time.monotonic() + seconds
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        left = deadline - time.monotonic()
        if left < -10: os.killpg(pid, signal.SIGKILL)
        elif left < 0: os.killpg(pid, signal.SIGABRT)
        time.sleep(0.01 if left > 0 else 5)
    return os.waitstatus_to_exitcode(ended[1])


def do(job: Callable[[], object], folder: Path) -> None:
    "Run a job in a child to its end."
    log = folder/"child.log"
    code = finish(start(job, log))
    assert code == 0, log.read_text()[-3000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    load()
    folder = tmp_path_factory.mktemp("resume")
    (folder/"settings.ini").write_text("[imgcls]\n")
    write_digits(folder/"small", of_each=20)        # a run takes a second
    return folder


@pytest.fixture(scope="module")
def straight(folder) -> tuple[dict, float]:
    "What a run that nobody stops ends with, and how long it takes."
    do(lambda: make(folder, "straight").fit(), folder)
    begun = time.monotonic()
    do(lambda: make(folder, "timed").fit(), folder)
    return outcome(folder/"runs"/"straight"), time.monotonic() - begun


def check_equal(folder: Path, name: str, straight: tuple[dict, float], like: str = "straight") -> None:
    found = first_difference(outcome(folder/"runs"/name), straight[0])
    assert found is None, f"{name}: {found}"
    best, wanted = (load_checkpoint(folder/"runs"/n/"weights"/"best.pt") for n in (name, like))
    for key in ("network", "optimizer", "epoch", "step", "callbacks"):
        assert first_difference(best[key], wanted[key], key) is None, (name, "best.pt")
    assert not [*(folder/"runs"/name).rglob(".*.tmp")], "what killed writers left is swept"


def killed(job: Callable[[], object], folder: Path, after: float, there: Path | None = None) -> bool:
    "Start a job and kill it, some seconds after a file is there if one is named; was there something to kill?"
    pid, end = start(job, folder/"child.log"), time.monotonic() + 60
    while there is not None and not there.exists() and time.monotonic() < end: time.sleep(0.01)
    time.sleep(after)
    try: os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError: os.kill(pid, signal.SIGKILL)
    return finish(pid) == -signal.SIGKILL


def test_runs_are_the_same_twice(folder, straight): check_equal(folder, "timed", straight)


@pytest.mark.parametrize("i", range(12))
def test_kill_9_at_a_random_instant(folder, straight, i):
    "Any number of workers before and after; every fourth run is killed twice."
    r, name = random.Random(i), f"kill_{i}"
    before, after = i % 3, i // 3 % 3
    run = folder/"runs"/name
    killed(lambda: make(folder, name, before).fit(), folder, r.uniform(0.2, straight[1] * 0.95))
    if not (run/"weights"/"last.pt").exists():      # killed before there was anything to resume
        do(lambda: make(folder, f"{name}_anew", before).fit(), folder)
        return check_equal(folder, f"{name}_anew", straight)
    if i % 4 == 0: killed(lambda: again(folder, name, after).resume(), folder, r.uniform(0.2, straight[1]))
    do(lambda: again(folder, name, after).resume(), folder)
    check_equal(folder, name, straight)


@pytest.mark.parametrize(("call", "number"), [("fsync", 9), ("fsync", 16), ("replace", 12), ("replace", 23),
                                              ("link", 5), ("write", 0)])
def test_kill_9_inside_a_checkpoint_write(folder, straight, call, number):
    "Killed by its own hand at a step of the writing: before a sync, before a rename, in the bytes themselves."
    name = f"write_{call}_{number}"

    def job():
        learn = make(folder, name)
        if call == "write":
            import imgcls.checkpointing as room
            def half(path, data):
                if learn.state.step < 18: return real(path, data)
                with open(temporary_for(Path(path)), "w+b") as file:     # some bytes are given, others write themselves
                    data(file) if callable(data) else file.write(data)
                    file.truncate(file.seek(0, os.SEEK_END)//2)
                os.kill(os.getpid(), signal.SIGKILL)
            real, room.write_atomic = room.write_atomic, half
        else:
            real, left = getattr(os, call), [number]
            def counted(*args, **kwargs):
                file = os.readlink(f"/proc/self/fd/{args[0]}") if call == "fsync" else str(args[0])
                left[0] -= "weights" in file
                if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)
            setattr(os, call, counted)
        learn.fit()

    assert finish(start(job, folder/"child.log")) == -signal.SIGKILL, (folder/"child.log").read_text()[-2000:]
    do(lambda: again(folder, name).resume(), folder)
    check_equal(folder, name, straight)


class Sleep(Callback):
    "Gives another process time to come."
    def on_batch_end(self, state) -> None: time.sleep(0.05)


def test_a_second_process_is_refused_and_a_killed_one_is_not_waited_for(folder, straight):
    "While one trains, another that resumes is refused by name; when it is killed, its orphaned workers hold nothing."
    owner = start(lambda: make(folder, "owned", 2).fit(callbacks=[Sleep()]), folder/"owner.log")
    last, end = folder/"runs"/"owned"/"weights"/"last.pt", time.monotonic() + 60
    while not last.exists() or load_checkpoint(last)["step"] < 3:
        assert time.monotonic() < end, (folder/"owner.log").read_text()
        time.sleep(0.1)

    def job():
        with pytest.raises(ConfigError, match=f"'owned' is being trained already, by process {owner} on "):
            again(folder, "owned").resume()

    do(job, folder)
    os.kill(owner, signal.SIGKILL)          # it alone, not its workers
    assert finish(owner) == -signal.SIGKILL
    do(lambda: again(folder, "owned").resume(), folder)
    assert "Waiting" not in (folder/"child.log").read_text()
    check_equal(folder, "owned", straight)


class Interrupt(Callback):
    "Sends this process an interrupt, once, at an event of the second epoch."
    order = Order.SAVE + 1              # while saving: the writer is at work

    def __init__(self, event: str):
        self.sent = False
        setattr(self, event, self.send)

    def send(self, state) -> None:
        if state.epoch < 1 or self.sent: return
        self.sent = True
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("event", ["on_loss", "on_val_batch_end", "on_epoch_end", "on_batch_end"])
def test_interrupt_and_go_on_in_the_same_process(folder, straight, event):
    "In the step, in validation, while saving."
    name = f"interrupt_{event}"
    listener = type("Once", (Interrupt,), {event: lambda self, state: self.send(state)})

    def job():
        learn = make(folder, name)
        with pytest.raises(TrainingInterrupted, match=r"Stopped at .*SIGINT.*learn.resume\(\) goes on"):
            learn.fit(callbacks=[listener(event)])
        assert learn.run.summary().status == "interrupted"
        learn.resume()
        assert learn.run.summary().status == "completed"

    do(job, folder)
    check_equal(folder, name, straight)


class SlowImages:
    "Passes images on, slowly enough to be interrupted while waiting for a worker."

    def __init__(self, dataset): self.dataset, self.targets, self.paths = dataset, dataset.targets, dataset.paths
    def __len__(self) -> int: return len(self.dataset)

    def __getitem__(self, i):
        time.sleep(0.02)
        return self.dataset[i]


class Alarm(Callback):
    "Interrupts the whole group half a second into the training, once."
    rung = False

    def on_fit_start(self, state) -> None:
        if not self.rung: signal.setitimer(signal.ITIMER_REAL, 0.5)
        self.rung = True


def test_interrupt_while_waiting_for_a_worker(folder, straight):
    def job():
        learn = make(folder, "waiting", workers=2)
        fast = learn.state.train_batches.dataset
        learn.state.train_batches.dataset = SlowImages(fast)
        signal.signal(signal.SIGALRM, lambda number, frame: os.killpg(0, signal.SIGINT))
        with pytest.raises(TrainingInterrupted): learn.fit(callbacks=[Alarm()])
        learn.state.train_batches.dataset = fast
        learn.resume()

    do(job, folder)
    check_equal(folder, "waiting", straight)


@pytest.fixture(scope="module")
def stopped(folder) -> Path:
    "A run that was killed in its second epoch."
    class Kill(Callback):
        order = Order.SAVE + 1
        def on_batch_end(self, state) -> None:
            if (state.epoch, state.batch) != (1, 12): return
            time.sleep(1)               # what is being written shall be there: last.pt and the one before
            os.kill(os.getpid(), signal.SIGKILL)
    finish(start(lambda: make(folder, "stopped").fit(callbacks=[Kill()]), folder/"child.log"))
    return folder/"runs"/"stopped"


def damaged(data: bytes, how: str) -> bytes:
    if how == "truncated": return data[:len(data) * 2 // 3]
    if how == "empty": return b""
    if how == "foreign": return b"<!DOCTYPE html><html>not found</html>"
    offset = random.Random(int(how)).randrange(len(data) * 8)
    return data[:offset // 8] + bytes([data[offset // 8] ^ (1 << offset % 8)]) + data[offset // 8 + 1:]


def test_damaged_last_checkpoint(folder, stopped, monkeypatch):
    "A clear error that names the file, or the checkpoint before; never wrong numbers."
    monkeypatch.chdir(folder)
    last = stopped/"weights"/"last.pt"
    good = {name: load_checkpoint(stopped/"weights"/name) for name in ("last.pt", "last.previous.pt", "best.pt")}
    original = last.read_bytes()
    refused = 0
    for how in ["truncated", "empty", "foreign", *map(str, range(10))]:
        last.write_bytes(damaged(original, how))
        try: state = load_checkpoint(last)
        except CheckpointError as error:
            refused += 1
            assert "last.pt" in str(error)
            learn = Learner.from_run("stopped", progress="pipe")
            state = good["last.previous.pt"]
            assert learn.state.step == state["step"]
            assert first_difference(dict(learn.network.state_dict()), state["network"]) is None
        else: assert first_difference(state["network"], good["last.pt"]["network"]) is None
    assert refused >= 10
    last.write_bytes(original)


def test_resume_from_the_checkpoint_before(folder, stopped, straight):
    last = stopped/"weights"/"last.pt"
    last.write_bytes(damaged(last.read_bytes(), "truncated"))
    do(lambda: again(folder, "stopped").resume(), folder)
    check_equal(folder, "stopped", straight)


def test_a_disk_that_fills_up(folder, straight):
    "The previous checkpoint is whole, and the run goes on once there is room."
    class Full(Callback):
        order = Order.PREPARE
        def on_epoch_start(self, state) -> None:
            if state.epoch == 1: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))

    def job():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        learn = make(folder, "full")
        os.close(2)                     # the log would hit the limit too
        os.open(os.devnull, os.O_WRONLY)
        with pytest.raises((CheckpointError, OSError)): learn.fit(callbacks=[Full()])

    do(job, folder)
    saved = load_checkpoint(folder/"runs"/"full"/"weights"/"last.pt")
    assert saved["epoch"] in (0, 1)             # whole: a full disk lost the new file, never the old one
    do(lambda: again(folder, "full").resume(), folder)
    check_equal(folder, "full", straight)


def test_names_and_contents_come_back(folder):
    "What trains can be resumed, whatever its names are; in another place too, but not with other images."
    def job():
        os.chdir(folder)
        for i, name in enumerate(["a ", "b\r", "=c|d", "1.0", "NA", "e\u0301", '"', "x\ny"]):
            (folder/"odd"/name).mkdir(parents=True)
            for k, file in enumerate(sorted((folder/"small"/str(i)).iterdir())[:6]):
                shutil.copy(file, folder/"odd"/name/f"{k}{[' ', chr(13), chr(10), ',', '=', chr(0xa0)][k]}.png")
        data = ImageData.from_folder("odd", size=16, val_ratio=0.3, test_ratio=0)
        learn = Learner(data, "tiny_net", name="odd", progress="pipe", num_epochs=2)
        learn.fit(1)
        opened = Learner.from_run("odd", progress="pipe")
        assert opened.class_names == data.class_names
        shutil.move("odd", "moved")
        moved = ImageData.from_folder("moved", size=16, val_ratio=0.3, test_ratio=0)
        with pytest.raises(DataError, match="48 of 48 files do not exist"): Learner.from_run("odd", progress="pipe")
        Learner.from_run("odd", data=moved, progress="pipe").fit(1)
        victim = Path(moved.paths("train")[0])
        victim.write_bytes(Path(moved.paths("train")[-1]).read_bytes())
        with pytest.raises(DataError, match="1 of 48 images have changed since the run was started"):
            Learner.from_run("odd", data=moved, progress="pipe")
        shutil.move("moved", "odd")
        with pytest.raises(DataError, match="1 of 48 images have changed since the run was started"):
            Learner.from_run("odd", progress="pipe")

    do(job, folder)
