"A run on two processes, started, shown and steered by a learner: what comes out, and what is left."
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import together
import torch
from conftest import Workspace

from imgcls import Learner, relaying, training
from imgcls.core import ConfigError
from imgcls.processes import Lost
from imgcls.relaying import LINE, work_here
from imgcls.training import Callback, State, TrainingInterrupted

pytest.importorskip("torch.distributed")


GRACE = 2.0         # seconds between the two signals; torch's launcher takes half a minute


class Forked:
    "In place of `Started`: forked from here, where everything is loaded; ended together, as torch's launcher does."

    def __init__(self, n: int, address: str):
        os.environ[LINE] = address
        self.pids, self.codes, self.told = together.start(n, self.work, Path()), {}, None
        del os.environ[LINE]

    def work(self, _: Path) -> None:
        training.release()              # it was claimed before the fork
        if code := work_here(): os._exit(code)

    def poll(self) -> int | None:
        for pid in {*self.pids} - {*self.codes}:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended: self.codes[pid] = os.waitstatus_to_exitcode(status)
        left, failed = {*self.pids} - {*self.codes}, [code for code in self.codes.values() if code]
        late = self.told is not None and time.monotonic() > self.told + GRACE
        if failed and (self.told is None or late):
            for pid in left: os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
            self.told = time.monotonic()
        return None if left else (failed or [0])[0]

    def said(self) -> str: return ""

    def close(self, well: bool) -> None:
        until(lambda: self.poll() is not None)


def until(true: Callable[[], Any], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    "A workspace, and this process in it."
    folder, before = tmp_path_factory.mktemp("relaying"), os.getcwd()
    Workspace(folder)
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture
def forked(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(relaying, "Started", Forked)
    return here


@pytest.fixture(scope="module")
def straight(here: Path) -> dict[str, Any]:
    "What two processes make of it that are started by torchrun."
    def work(folder: Path) -> None:
        learn = together.learner("apart", "straight").fit()
        accuracy = learn.evaluate("val", "last").accuracy
        together.told(learn, folder/"straight.pt")
        if not learn.state.team.rank: (folder/"accuracy.txt").write_text(repr(accuracy))
    assert together.finished(together.start(2, work, here)) == [0, 0]
    return torch.load(here/"straight.pt") | {"accuracy": float((here/"accuracy.txt").read_text())}


def check_same(learn: Learner, straight: dict[str, Any]) -> None:
    "Bit for bit: weights, losses, epochs; and so the answers."
    weights = learn.network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in straight["weights"].items())
    assert learn.history.steps.loss.tolist() == straight["losses"]
    assert learn.history.epochs.drop(columns="seconds").to_dict("list") == straight["epochs"]
    assert learn.evaluate("val", "last").accuracy == straight["accuracy"]
    assert (learn.state.status, learn.run.summary().status) == ("completed", "completed")


class Local(Callback):
    "A class of this file; leaves time to do something."
    def on_batch_end(self, state: State) -> None: time.sleep(0.05)


def test_it_is_the_run_of_torchrun_shown_here(forked: Path, straight: dict[str, Any]):
    pages = []
    class Shows(Callback):
        def on_epoch_end(self, state: State) -> None: pages.append((state.epoch, state.history.last["val_loss"]))
    learn = together.learner("apart", "relayed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imgcls.learner.progress_callbacks", lambda *_: [Shows()])
        learn.fit(processes=2)
    check_same(learn, straight)
    assert pages == [*enumerate(straight["epochs"]["val_loss"], 1)]
    assert learn.history.event_rows() == straight["events"] == []
    assert learn.run_summary.environment["processes"] == 2 and not learn.run_summary.objects
    assert learn.state.team.size == 1 and learn.run.summary().pid != os.getpid()


@pytest.mark.parametrize("background", [False, True])
def test_stopped_by_hand_and_resumed(forked: Path, straight: dict[str, Any], background: bool):
    "■ in a cell; pause, learning-rate factor and stop of a panel. Resumed by two, it is as if nobody had stopped it."
    learn = together.learner("apart", f"stopped-{background}", callbacks=[Local()])
    def person() -> None:
        until(lambda: learn.state.step >= 3)
        if not background: return os.kill(os.getpid(), signal.SIGINT)
        learn.control.pause()
        until(lambda: learn.control.waiting)
        with suppress(Exception): learn.evaluate("val", "last")         # somebody looks meanwhile
        for tries in (learn.lr_find, learn.find_batch_size):
            try: tries()
            except ConfigError as error: refused.append(str(error))
        learn.control.resume()
        until(lambda: not learn.control.waiting)
        learn.control.stop("enough")
    refused: list[str] = []
    thread = threading.Thread(target=person, daemon=True)
    thread.start()
    why = "enough" if background else "SIGINT"
    said = rf"\({why}\)\. Saved to stopped-{background}\. learn\.resume\(\) goes on"
    with pytest.raises(TrainingInterrupted, match=said):
        learn.fit(processes=2, background=background).wait()
    thread.join(30)
    assert len(refused) == 2 * background and all("Other processes train these weights now" in said for said in refused)
    assert (learn.state.status, learn.run.summary().status) == ("interrupted", "interrupted")
    assert 3 <= learn.state.step < len(straight["losses"])
    assert "interrupted at" in repr(learn)
    learn.resume(processes=2, background=background).wait()
    check_same(learn, straight)
    told = ["paused", "continued", "stopped", "resumed"] if background else ["resumed"]
    assert learn.history.events.event.tolist() == told


def test_an_error_of_a_process_is_the_error_of_the_cell(forked: Path):
    class Fails(Callback):
        "One process fails, or is killed."
        how: Any = ValueError("my mistake")
        def on_batch_end(self, state: State) -> None:
            if (state.team.rank, state.step) != (1, 3) or state.in_step: return
            if isinstance(self.how, Exception): raise self.how
            os.kill(os.getpid(), signal.SIGKILL)
    fails = Fails()
    learn = together.learner("apart", "fails", callbacks=[fails])
    with pytest.raises(ValueError, match="my mistake") as found: learn.fit(processes=2)
    assert "In process 1" in str(found.value.__cause__) and "on_batch_end" in str(found.value.__cause__)
    assert (learn.state.status, learn.run.summary().status, learn.state.epoch) == ("failed", "failed", 1)
    fails.how = None
    with pytest.raises(Lost, match="Another of the 2 processes is gone"): learn.resume(processes=2)
    assert learn.run.summary().status == "failed"
    assert learn.resume().state.status == "completed"           # here, by one
    assert [row["event"] for row in learn.history.event_rows()] == ["resumed", "resumed", "processes"]
    assert "2 processes before, 1 from here" in learn.run_summary.notes[-1]


def test_fine_tuned(forked: Path):
    "The head first, then everything, on two processes: what torchrun's processes make of it."
    def work(folder: Path) -> None: together.told(together.learner("apart", "tuned").fine_tune(2), folder/"tuned.pt")
    assert together.finished(together.start(2, work, forked)) == [0, 0]
    learn, there = together.learner("apart", "tuned here").fine_tune(2, processes=2), torch.load(forked/"tuned.pt")
    weights = learn.network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in there["weights"].items())
    assert learn.history.steps.loss.tolist() == there["losses"]
    assert (learn.history.event_rows(), learn.state.epoch, learn.state.status) == (there["events"], 3, "completed")


class Long(Callback):
    "Says which processes there are, and takes its time."
    def on_batch_end(self, state: State) -> None:
        draft = Path(f"{state.team.rank}.{os.getpid()}")       # whoever reads finds all of it
        draft.write_text(f"{os.getpid()} {os.getppid()}")
        draft.replace(f"{state.team.rank}.pid")
        time.sleep(0.05)


def test_one_that_hangs(forked: Path):
    "Stopped by SIGSTOP: the other says so, and nothing is left."
    def person() -> None:
        until(lambda: learn.state.step >= 3)
        pids.extend(int((forked/f"{rank}.pid").read_text().split()[0]) for rank in range(2))
        os.kill(pids[0], signal.SIGSTOP)
    pids: list[int] = []
    learn = together.learner("apart", "hangs", callbacks=[Long()], num_epochs=500, process_timeout=2.0)
    threading.Thread(target=person, daemon=True).start()
    with pytest.raises(Lost, match="It has said nothing for 2 s"): learn.fit(processes=2)
    assert (learn.state.status, learn.run.summary().status) == ("failed", "failed")
    for rank, pid in enumerate(pids):
        with pytest.raises(ProcessLookupError): os.kill(pid, 0)
        (forked/f"{rank}.pid").unlink()


def test_the_processes_end_with_the_kernel(here: Path):
    "It is killed; they save, and nothing is left running. By torch's launcher, as a user has it."
    kernel = os.fork()
    if not kernel:
        try: together.learner("apart", "killed", callbacks=[Long()], num_epochs=500).fit(processes=2)
        finally: os._exit(1)
    until(lambda: (here/"runs/killed/history.csv").exists() and (here/"1.pid").exists() and (here/"0.pid").exists())
    os.kill(kernel, signal.SIGKILL)
    os.waitpid(kernel, 0)
    pids = {int(pid) for file in ("0.pid", "1.pid") for pid in (here/file).read_text().split()}
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids) if Path("/proc").exists() else True)
    learn = Learner.from_run("runs/killed", progress="pipe")
    assert learn.run.summary().status == "interrupted" and learn.state.step == learn.run.summary().step > 0
