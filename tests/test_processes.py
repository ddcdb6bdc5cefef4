"One run on several processes: the same as on one, whatever happens to them."
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import together
import torch
from conftest import BIN, Workspace, kill, output_of

from imgcls.runs import Run

LAW = 1e-10         # in float64, without BatchNorm


class Server:
    "A process that has loaded all and computed nothing, in a workspace: teams are forked from it."

    def __init__(self, folder: Path):
        self.folder, self.said, self._seen = folder, folder/"said.txt", 0
        environment = Workspace(folder).environment
        self.process = subprocess.Popen([sys.executable, together.__file__], cwd=folder, env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said.open("w"))

    def _ask(self, *words: Any) -> list[int]:
        self.process.stdin.write(f"{json.dumps(words)}\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():
            if line.startswith("ANSWER "): return json.loads(line.removeprefix("ANSWER "))
        raise AssertionError(self.said.read_text())

    def start(self, n: int, work: str, out: Path) -> list[int]:
        "Begin; the numbers of the processes."
        self._seen = len(self.said.read_text())
        return self._ask("start", n, work, str(out))

    def launch(self, n: int, work: str, out: Path) -> list[int]:
        "By a launcher, whose number comes first."
        self._seen = len(self.said.read_text())
        return self._ask("launch", n, work, str(out))

    def finished(self, pids: list[int]) -> list[int]:
        "Exit codes; a signal's number with a minus."
        return self._ask("finished", pids)

    @property
    def errors(self) -> str: return self.said.read_text()[self._seen:]

    def ran(self, n: int, work: str, name: str | None = None, code: int = 0) -> Path:
        "What so many processes leave behind."
        out = self.folder/(name or f"{work}-{n}".strip())
        out.mkdir(exist_ok=True)
        assert self.finished(self.start(n, work, out)) == [code] * n, self.errors
        return out


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("processes"))
    yield server
    server.process.kill()


def loaded(file: Path) -> dict[str, Any]: return torch.load(file, weights_only=False)


def apart(one: Any, other: Any) -> float:
    "The greatest difference of two trees of numbers and tensors; infinite where they have other branches."
    if isinstance(one, dict):
        return max((apart(one[k], other[k]) for k in one), default=0.0) if one.keys() == other.keys() else float("inf")
    if isinstance(one, (list, tuple)):
        if len(one) != len(other): return float("inf")
        return max((apart(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, torch.Tensor): return (one.double() - other.double()).abs().max().item()
    if isinstance(one, (int, float)): return abs(one - other)
    return 0.0 if one == other else float("inf")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    "To the last bit: weights, the average, losses of all steps, rows of all epochs."
    return all(apart(one[part], other[part]) == 0 for part in ("weights", "average", "losses", "epochs"))


@pytest.fixture(scope="module")
def alone(server: Server) -> Path:
    "All cases in one process."
    return server.ran(1, "laws")


@pytest.mark.parametrize(("n", "how"), [(2, ""), (3, ""), (2, "sharded")])
def test_several_are_one(server: Server, alone: Path, n: int, how: str) -> None:
    "With everything switched on, with fewer images than processes in the last batch, and with a network in pieces."
    found = server.ran(n, f"{how} laws")
    for case in together.CASES:
        one, several = loaded(alone/f"{case}.pt"), loaded(found/f"{case}.pt")
        for part in ("weights", "average"): assert apart(one[part], several[part]) < LAW, (case, part)
        loose = 1e-6 if case == "logits" else LAW           # focal loss reckons in float32
        assert apart(one["losses"], several["losses"]) < loose and apart(one["epochs"], several["epochs"]) < loose, case
        assert len(one["losses"]) > 7 and max(one["losses"]) - min(one["losses"]) > 0.001, "nothing was learned"
        assert (alone/f"{case}.txt").read_text() == (found/f"{case}.txt").read_text()
        assert several["divided"] == bool(how)


def test_stopped_and_resumed(server: Server) -> None:
    "In the middle of an epoch, BatchNorm synchronized and not: bit for bit."
    found = server.ran(2, "stops")
    for case in ("synced", "apart"): assert same(loaded(found/f"{case}.pt"), loaded(found/f"{case}-stopped.pt")), case
    assert not same(loaded(found/"synced.pt"), loaded(found/"apart.pt"))


def test_in_pieces(server: Server) -> None:
    "A divided network: stopped in the middle of an epoch, bit for bit; each optimizer; and answers."
    found = server.ran(2, "sharded pieces")
    assert same(loaded(found/"synced.pt"), loaded(found/"synced-stopped.pt")) and loaded(found/"synced.pt")["divided"]


@pytest.mark.parametrize(("before", "after", "how"), [(2, 1, ""), (2, 1, "sharded"), (1, 2, "sharded")])
def test_resumed_by_another_number(server: Server, alone: Path, before: int, after: int, how: str) -> None:
    "The law holds across a resume, which says what has changed; one process has all pieces, two have them again."
    shutil.rmtree(server.folder/"runs"/"everything-moved", ignore_errors=True)
    server.ran(before, f"{how} begins")
    found = server.ran(after, f"{how} goes_on")
    one, moved = loaded(alone/"everything.pt"), loaded(found/"everything-moved.pt")
    assert apart(one["weights"], moved["weights"]) < LAW and apart(one["epochs"], moved["epochs"]) < LAW
    assert "processes" in [event["event"] for event in moved["events"]]
    words = {1: "1 process", 2: "2 processes"}
    assert f"{words[before]} before, {after} from here (step 3)" in (found/"notes.txt").read_text()


KILLS = {"one": [1], "the first": [0], "both": [0, 1]}


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("seed", "work"), [(1, "long"), (2, "sharded long")])
def test_killed_again_and_again(server: Server, seed: int, work: str) -> None:
    "Five times each, one or both, by SIGKILL, SIGTERM and SIGINT at random instants: as never stopped."
    reference = server.ran(2, work, f"long{seed}")
    numbers, out = random.Random(seed), server.folder/f"killed{seed}"
    out.mkdir()
    for _ in range(5):
        began, pids = time.monotonic(), server.start(2, work, out)
        step = at(out) + numbers.randrange(1, 5)
        while at(out) < step and time.monotonic() < began + 30: time.sleep(0.002)
        time.sleep(0.03 * numbers.random())
        number = numbers.choice([signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT])
        for rank in KILLS[numbers.choice([*KILLS])]: os.kill(pids[rank], number)
        codes = server.finished(pids)
        assert 0 not in codes or codes == [0, 0], codes
        if codes == [0, 0]: break                   # it was done already
    codes = server.finished(server.start(2, work, out))
    assert codes == [0, 0] and same(loaded(reference/"long.pt"), loaded(out/"long.pt"))


def at(out: Path) -> int:
    "The step that process 0 has said."
    try: return int((out/"step.txt").read_text() or 0)
    except FileNotFoundError: return 0


def test_one_that_hangs_ends_all(server: Server) -> None:
    "Stopped by SIGSTOP: the other one gives up after `process_timeout`, 3 seconds, and says why."
    out = server.folder/"hangs"
    out.mkdir()
    pids = server.start(2, "long", out)
    while at(out) < 3: time.sleep(0.005)
    os.kill(pids[1], signal.SIGSTOP)
    began = time.monotonic()
    code = server.finished(pids[:1])
    os.kill(pids[1], signal.SIGKILL)
    assert code == [1] and server.finished(pids[1:]) == [-9] and time.monotonic() - began < 30
    assert "It has said nothing for 3 s" in server.errors


def test_the_launcher_is_killed(server: Server) -> None:
    "Its processes save, end, say why, and leave a run that goes on bit for bit."
    if not (server.folder/"long").exists(): server.ran(2, "long", "long")
    out = server.folder/"orphans"
    out.mkdir()
    launcher, *pids = server.launch(2, "long", out)
    while at(out) < 3: time.sleep(0.005)
    os.kill(launcher, signal.SIGKILL)
    assert server.finished([launcher]) == [-9]
    began = time.monotonic()
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < began + 20, "they train on"
        time.sleep(0.01)
    assert Run(server.folder/"runs"/"orphans").summary().status == "interrupted"
    assert "(the launcher of its processes has ended). Saved to orphans." in server.errors
    server.ran(2, "long", "orphans")
    assert same(loaded(server.folder/"long"/"long.pt"), loaded(out/"long.pt"))


def alive(pid: int) -> bool:
    "Is it there, and no zombie whom nobody has asked for its exit code?"
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError: return False


def test_a_pause_is_no_silence(server: Server) -> None:
    "Four seconds of pause, two of silence are borne; and a pause changes nothing."
    found = server.ran(2, "pauses")
    assert float((found/"seconds.txt").read_text()) > 4
    paused, plain = loaded(found/"pauses.pt"), loaded(server.ran(2, "plain")/"plain.pt")
    assert same(paused, plain) and [event["event"] for event in paused["events"]] == ["paused", "continued"]


@pytest.mark.parametrize(("work", "said"), [
    ("unlike", "Process 1 differs from process 0 in the images"),
    ("too_few", "too few for 2 processes that each normalize their own"),
    ("breaks", "process 1: OSError: the disk of process 1 is gone")])
def test_errors(server: Server, work: str, said: str) -> None:
    "What is wrong with one is said by all."
    server.ran(2, work, code=1)
    assert said in server.errors


BREAKS_ONCE = """
from pathlib import Path
from imgcls.training import Callback

class BreaksOnce(Callback):
    "Process 1 is killed at step 5, the first time."
    def on_batch_start(self, state):
        if state.step == 5 and state.team.rank == 1 and not Path("broken").exists():
            Path("broken").touch()
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.timeout(280)
def test_torchrun_starts_again_and_goes_on(server: Server, workspace: Workspace,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    "A worker is killed, torchrun starts all again: one run, the weights of two processes that nobody kills."
    here = workspace.folder = server.folder
    server.ran(2, "commanded", "ours")
    (here/"mine.py").write_text(BREAKS_ONCE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")])))
    theirs = workspace.launch(str(BIN/"torchrun"), "--standalone", "--nproc_per_node", "2", "--max-restarts", "2", "-m",
                              "imgcls.cli", "train", *together.WORDS, "--name", "theirs", "callbacks=[mine.BreaksOnce]")
    said = output_of(theirs)
    assert theirs.returncode == 0 and (here/"broken").exists(), said
    assert "Started again by torchrun: the run 'theirs' goes on." in said[1]
    left = {folder.name for folder in (here/"runs").iterdir() if folder.name.startswith(("theirs-", ".started"))}
    assert not left - {".started-together"}             # of another test, whose launcher was killed
    one, other = (loaded(Run(here/"runs"/name).last)["network"] for name in ("ours", "theirs"))
    assert apart(one, other) == 0


@pytest.mark.timeout(200)
def test_an_interrupt_reaches_all(workspace: Workspace) -> None:
    "Ctrl-C on the command: all pause, the run is saved, one line says so."
    workspace.few_digits()
    process = workspace.launch(str(BIN/"imgcls-train"), "--config", "digits", "num_epochs=200", "batch_size=64",
                               "size=8", "architecture=tiny_net", "--name", "interrupted", "--processes", "2",
                               fresh=True)
    run, began = Run(workspace.folder/"runs"/"interrupted"), time.monotonic()
    while not run.history_path.exists() and time.monotonic() < began + 90 and process.poll() is None: time.sleep(0.05)
    kill(process, signal.SIGINT)
    said = output_of(process)
    assert process.returncode == 130, said
    assert said[1].count("Stopped at") == 1 and "Traceback" not in said[1]
    assert "imgcls-train --resume interrupted --processes 2 goes on" in said[1]
    assert run.summary().status == "interrupted"
