"""Many runs on several processes: a study of which one process is killed, and folds that two processes share.

Children are forked from this process, which has torch loaded already.
"""
import contextlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import pandas  # noqa: F401 (loaded once, before children are forked)
import pytest
import scipy.stats  # noqa: F401
import sklearn.metrics  # noqa: F401
import sqlalchemy  # noqa: F401
from test_resume import finish, start

from imgcls import Learner, cross_validate, repeat, sweep
from imgcls.checkpointing import first_difference
from imgcls.history import Event, History
from imgcls.jobs import here
from imgcls.keeping import load_checkpoint
from imgcls.runs import Run
from imgcls.samples import write_digits
from imgcls.search import loguniform, run_of
from imgcls.sweeps import read_sweep
from imgcls.training import Callback, Order, State

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and kills")
CONFIG = {"data": {"data_dir": "small"}, "model": {"architecture": "tiny_net"}, "optimizer": {"type": "adamw"},
          "training": {"num_epochs": 2, "batch_size": 16, "trackers": [], "checkpoint_every": "2 steps"},
          "transforms": {phase: {"resize": [8, 8]} for phase in ("train", "val", "test")}}
SPACE = {"lr": loguniform(1e-4, 1e-1), "label_smoothing": [0.0, 0.1]}


class Waits(Callback):
    "In the third run of a process that shall wait: in the middle of the second epoch it waits to be killed."
    order = Order.STEER
    shall_wait, runs = False, 0

    def on_fit_start(self, state: State) -> None: type(self).runs += 1

    def on_batch_end(self, state: State) -> None:
        if not (self.shall_wait and self.runs == 3 and state.step == 9): return
        Path("waiting").touch()
        time.sleep(100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps")
    (folder/"settings.ini").write_text("[imgcls]\n")
    write_digits(folder/"small", of_each=12)        # a run takes half a second
    return folder


def begin(folder: Path, name: str, job, waits: bool = False) -> int:
    "Do something in a child; its pid."
    def here() -> None:
        os.chdir(folder)
        Waits.shall_wait = waits
        with open(folder/f"{name}.log", "w") as sys.stdout, contextlib.redirect_stderr(sys.stdout): _logged(job)
    return start(here, folder/f"{name}.log")


def _logged(job) -> None:
    "What it logs and raises is in the log of the child, not in what pytest caught."
    try: job()
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        raise
    finally: sys.stdout.flush()


def ended(folder: Path, name: str, pid: int) -> None:
    code = finish(pid, 150)
    assert code == 0, (folder/f"{name}.log").read_text()[-3000:]


def study() -> None:
    sweep(CONFIG, SPACE, trials=12, name="rates", prune=None, heartbeat=1, own={"progress": "pipe",
                                                                                "callbacks": [Waits()]})


def history(run: Run) -> History:
    found = History()
    found.load_state_dict(load_checkpoint(run.last)["history"])
    return found


def test_a_study_of_two_processes_outlives_the_kill_of_one(folder, monkeypatch):
    "12 trials, 12 results, none twice; the killed one goes on in its folder, bit for bit."
    monkeypatch.chdir(folder)
    first = begin(folder, "first", study, waits=True)
    until = time.monotonic() + 120
    while not (folder/"waiting").exists():
        assert time.monotonic() < until, (folder/"first.log").read_text()[-3000:]
        time.sleep(0.05)
    second = begin(folder, "second", study)
    while len([*(folder/"runs"/"rates").glob("trial_*")]) < 5:
        assert time.monotonic() < until, (folder/"second.log").read_text()[-3000:]
        time.sleep(0.05)
    os.killpg(first, signal.SIGKILL)
    assert finish(first) == -signal.SIGKILL
    ended(folder, "second", second)

    found = read_sweep("rates")
    names = [f"trial_{i}" for i in range(12)]
    assert found.table.index.tolist() == names and set(found.table.status) == {"completed"}
    assert {run.name for run in found.place.glob("trial_*")} == {*names}
    results = [run_of(row) for row in found.study.get_trials() if row.state.name == "COMPLETE"]
    assert sorted(results) == sorted(names)                     # none twice
    rows = [row for row in found.study.get_trials() if run_of(row) == "trial_2"]
    assert rows[0].state.name == "FAIL" and all(row.params == rows[0].params for row in rows)
    resumed = {name: len(history(found.run(name)).happened(Event.RESUMED)) for name in names}
    assert resumed == {name: int(name == "trial_2") for name in names}

    def straight() -> None:
        own = {"name": "straight", "progress": "pipe", "callbacks": [Waits()]}
        Learner.from_config(found.run("trial_2").config_path, own=own).fit()

    ended(folder, "straight", begin(folder, "straight", straight))
    for file in ("last.pt", "best.pt"):
        one, two = (load_checkpoint(run.weights/file) for run in (found.run("trial_2"), Run.open("straight")))
        assert first_difference(one["network"], two["network"]) is None, file
        assert one["step"] == two["step"]
    assert history(found.run("trial_2")).same_as(history(Run.open("straight")))


def test_two_processes_share_the_folds(folder, monkeypatch):
    "Each fold is trained once, and both see all of them."
    monkeypatch.chdir(folder)

    def folds() -> None:
        trained = []
        def engine(jobs):
            for done in here(jobs):
                trained.append((done.job.place.name, done.status))
                yield done
        found = cross_validate(CONFIG, k=4, num_epochs=1, name="folds", own={"progress": "pipe"}, engine=engine)
        print("trained", json.dumps([trained, found.table.accuracy.tolist()]))

    names = ("one", "two")
    for name, pid in [(name, begin(folder, name, folds)) for name in names]: ended(folder, name, pid)
    lines = [line for name in names for line in (folder/f"{name}.log").read_text().splitlines()]
    said = [json.loads(line.removeprefix("trained ")) for line in lines if line.startswith("trained ")]
    assert len(said) == 2 and said[0][1] == said[1][1]
    for number in range(1, 5):
        run = Run(folder/"runs"/"folds"/f"fold_{number}")
        assert len(history(run)) == 1 and run.log_path.read_text().count("Training completed") == 1


def test_a_signal_between_two_seeds_loses_nothing(folder, monkeypatch):
    monkeypatch.chdir(folder)

    def seeds() -> None: repeat(CONFIG, seeds=3, name="seeds", own={"progress": "pipe", "callbacks": [Waits()]})

    (folder/"waiting").unlink(missing_ok=True)
    pid = begin(folder, "seeds", seeds)
    while not (folder/"runs"/"seeds"/"seed_43"/"weights"/"last.pt").exists(): time.sleep(0.02)
    os.kill(pid, signal.SIGTERM)
    code = finish(pid)
    said = (folder/"seeds.log").read_text()
    assert code == 1 and "TrainingInterrupted" in said and "repeat(..., name='seeds') goes on" in said, said[-2000:]
    done = Run(folder/"runs"/"seeds"/"seed_42").summary().ended
    ended(folder, "seeds", begin(folder, "seeds", seeds))
    assert Run(folder/"runs"/"seeds"/"seed_42").summary().ended == done
    statuses = [Run(folder/"runs"/"seeds"/f"seed_{seed}").summary().status for seed in (42, 43, 44)]
    assert statuses == ["completed"] * 3
