"""Runs and answers by the processes of a Ray of two CPUs, some of which are killed.

One Ray serves the whole module. What asks from a process of its own finds it by RAY_ADDRESS.
"""
# ruff: noqa: F811 (a fixture of another module)
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_sweeps import CONFIG, folder, history  # noqa: F401 (a fixture)

from imgcls import ConfigError, cross_validate, repeat, streaming, sweep
from imgcls.checkpointing import first_difference
from imgcls.cluster import Ray, Task, _Terminated
from imgcls.engines import on_ray
from imgcls.history import Event
from imgcls.jobs import Job
from imgcls.keeping import load_checkpoint
from imgcls.networks import ModelConfig, build_network
from imgcls.predictor import Predictor
from imgcls.runs import Run
from imgcls.search import run_of
from imgcls.streaming import predict_to
from imgcls.training import Callback, Order, State
from imgcls.transforms import TransformConfig, build_transform

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills")
TESTS = Path(__file__).parent
QUIET = {"progress": "pipe"}


@pytest.fixture(scope="module")
def ray(tmp_path_factory) -> Iterator:
    "Connected as it is for a call, and held."
    patch = pytest.MonkeyPatch()
    lean = [str(TESTS/"lean"), str(TESTS)]
    patch.setenv("PYTHONPATH", os.pathsep.join([*lean, str(TESTS.parent), os.environ.get("PYTHONPATH", "")]))
    patch.syspath_prepend(lean[0])
    patch.setattr("imgcls.cluster.cores_here", lambda: 2)
    patch.delenv("RAY_ADDRESS", raising=False)
    patch.setenv("RAY_worker_niceness", "0")        # Ray's own 15 leaves its processes no time beside other tests
    before = signal.getsignal(signal.SIGTERM)
    with Ray().connected() as (ray, ours):
        assert ours and ray.cluster_resources()["CPU"] == 2
        yield ray
    assert not ray.is_initialized() and signal.getsignal(signal.SIGTERM) == before
    patch.undo()


def wait_for(there, seconds: float = 120, said=lambda: "") -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, said()
        time.sleep(0.02)


class Dies(Callback):
    "Kills its process at step 9, in the second epoch, of the first run that comes there."
    order = Order.STEER

    def on_batch_end(self, state: State) -> None:
        if state.step != 9: return
        try: Path("died").touch(exist_ok=False)
        except FileExistsError: return
        os.kill(os.getpid(), signal.SIGKILL)


class Slow(Callback):
    "Gives time to press Ctrl-C."
    order = Order.STEER

    def on_fit_start(self, state: State) -> None:
        with open("fits", "a") as file: file.write(f"{os.getpid()}\n")

    def on_batch_end(self, state: State) -> None:
        if not Path("fast").exists(): time.sleep(0.3)


def same_runs(one: Run, two: Run) -> None:
    for file in ("last.pt", "best.pt"):
        ours, theirs = (load_checkpoint(run.weights/file) for run in (one, two))
        assert first_difference(ours["network"], theirs["network"]) is None, file
    assert history(one).same_as(history(two))


def test_a_sigterm_waits_until_tasks_can_be_ended():
    "Between two looks at Ray, which would make another exit of it."
    # private: a signal at a moment of its own needs the whole of a call
    before, heard = signal.getsignal(signal.SIGTERM), []
    try:
        signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
        with _Terminated() as terminated:
            os.kill(os.getpid(), signal.SIGTERM)
            assert not heard
            terminated.let_out()
            assert len(heard) == 1
            os.kill(os.getpid(), signal.SIGTERM)
        assert len(heard) == 2                      # nobody looked again: it is handed on at the end
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(SystemExit) as caught, _Terminated() as terminated:
            os.kill(os.getpid(), signal.SIGTERM)
            terminated.let_out()
        assert caught.value.code == 143 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally: signal.signal(signal.SIGTERM, before)


def save_at_the_end(place: str) -> None:
    Path(place, "begun").touch()
    try:
        for _ in range(600): time.sleep(0.1)
    except KeyboardInterrupt:
        Path(place, "saved").touch()
        raise


def test_what_is_left_is_ended(ray, tmp_path):
    asked = Ray().each(save_at_the_end, [Task("long", str(tmp_path)), Task("short", "/nowhere")])
    with pytest.raises(FileNotFoundError) as caught: next(asked)        # the error of the other one
    assert "save_at_the_end" in "".join(caught.value.__notes__)
    assert (tmp_path/"saved").exists() or not (tmp_path/"begun").exists()


def test_no_machine_is_large_enough(ray, monkeypatch):
    monkeypatch.setattr("imgcls.cluster.PATIENCE", 0)
    said = "must fit into a machine of the cluster. Got '64 CPUs and 0 GPUs; the largest has 2 CPUs and 0 GPUs'"
    with pytest.raises(ConfigError, match=said):
        [*Ray(cpus=64).each(str, [Task("one", 1)])]


def test_pruning_is_told_from_the_workers(ray, folder, monkeypatch):
    "By the storage; one that they would only have copies of is refused."
    import optuna
    monkeypatch.chdir(folder)
    found = sweep(CONFIG, {"lr": [0.02]}, trials=None, name="told", own=QUIET, engine=Ray(tasks=1))
    assert [len(row.intermediate_values) for row in found.study.get_trials()] == [2]
    with pytest.raises(ConfigError, match="`storage` must be one that other processes reach"):
        sweep(CONFIG, {"lr": [0.02]}, storage=optuna.storages.InMemoryStorage(), name="own", engine="ray")
    assert not (folder/"runs"/"own").exists()


def test_folds_are_those_of_one_process(ray, folder, monkeypatch):
    monkeypatch.chdir(folder)
    one, two = (cross_validate(CONFIG, k=2, num_epochs=1, name=f"folds_{engine}", own=QUIET, engine=engine)
                for engine in ("ray", "here"))
    assert one.table.to_csv() == two.table.to_csv()


def test_what_fails_by_itself_is_not_tried_again(ray, folder, monkeypatch):
    "And what cannot be sent is named."
    monkeypatch.chdir(folder)
    Path("fits").unlink(missing_ok=True)
    Path("fast").touch()
    (folder/"runs"/"wrong").mkdir(parents=True)
    own = {**QUIET, "callbacks": [Slow()]}
    [done] = on_ray([Job(place=folder/"runs"/"wrong"/"run", config=CONFIG, changes={"lr": 1e30}, own=own)])
    assert done.status == "failed" and type(done.error).__name__ == "TrainingDiverged"
    assert len(Path("fits").read_text().splitlines()) == 1
    Path("fast").unlink()
    with pytest.raises(ConfigError, match=r"`own\['callbacks'\]` cannot be sent to another process"):
        repeat(CONFIG, seeds=2, own={**QUIET, "callbacks": [Holding()]}, engine="ray")


class Holding(Slow):
    def __init__(self): self.lock = threading.Lock()
    def __deepcopy__(self, memo): return self


# Images

N, BROKEN = 90, (3, 77)


class Mortal(torch.nn.Module):
    "Kills a process that is not the one that asks, once."

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        fatal = Path("fatal")
        if fatal.exists() and fatal.read_text() != str(os.getpid()):
            fatal.unlink(missing_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.network(images)


def predictor() -> Predictor:
    network = build_network(ModelConfig(architecture="tiny_net", weights=None), 3, seed=0)
    return Predictor(Mortal(network), build_transform(TransformConfig(resize=(32, 32)), "test"), ["ant", "bee", "cat"],
                     batch_size=4)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(N): Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder/f"{i:03}.png")
    for i in BROKEN: (folder/f"{i:03}.png").write_bytes(b"\x89PNG")
    return folder


def die_after_four(photos: str, out: str) -> None:
    keep, made = streaming.Job.keep, []

    def counted(self, *part) -> None:
        keep(self, *part)
        made.append(1)
        if len(made) == 4: os.kill(os.getpid(), signal.SIGKILL)

    streaming.Job.keep = counted
    predict_to(predictor(), out, photos, chunk=8, engine="ray")


def test_images_in_memory_and_processes_that_load_them(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "_TOGETHER", 2)
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (20, 24, 3), dtype=np.uint8) for _ in range(133)]
    for name, engine in (("here", None), ("ray", Ray())):
        predict_to(predictor(), tmp_path/f"{name}.jsonl", images, chunk=4, num_workers=1, engine=engine)
    assert (tmp_path/"ray.jsonl").read_bytes() == (tmp_path/"here.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="`engine` must be 'ray' or a `Ray`"):
        predict_to(predictor(), tmp_path/"x.csv", images, engine="here")


# Kills

CODE = "import sys; sys.path.insert(0, sys.argv[1]); import test_ray; getattr(test_ray, sys.argv[2])(*sys.argv[3:])"


def start(workspace, address: str, *words: str):
    "A process of its own that asks the same Ray."
    os.environ["RAY_ADDRESS"] = address
    try: return workspace.launch(sys.executable, "-c", CODE, str(TESTS), *words)
    finally: del os.environ["RAY_ADDRESS"]


def test_a_sweep_outlives_the_kill_of_a_worker(ray, folder, monkeypatch):
    "Each trial has one result, that of a sweep in one process; the killed one was resumed, bit for bit."
    monkeypatch.chdir(folder)
    space = {"lr": [0.01, 0.02, 0.04]}
    own = {**QUIET, "callbacks": [Dies()]}
    found = sweep(CONFIG, space, trials=None, name="on_ray", prune=None, own=own, engine="ray")
    assert Path("died").exists()
    straight = sweep(CONFIG, space, trials=None, name="here", prune=None, own=own)
    names = [f"trial_{i}" for i in range(3)]
    assert found.table.index.tolist() == names and set(found.table.status) == {"completed"}
    assert found.table.to_csv() == straight.table.to_csv()
    rows = [row for row in found.study.get_trials() if row.state.name == "COMPLETE"]
    assert sorted(map(run_of, rows)) == names                       # none twice
    assert sorted(len(history(found.run(name)).happened(Event.RESUMED)) for name in names) == [0, 0, 1]
    for name in names: same_runs(found.run(name), straight.run(name))


def test_answers_outlive_the_kill_of_a_worker_and_of_whoever_asked(ray, photos, workspace, monkeypatch):
    "Byte for byte those of one process, each image once."
    monkeypatch.chdir(workspace.folder)
    out, whole = workspace.folder/"out.csv", workspace.folder/"whole.csv"
    predict_to(predictor(), whole, photos, chunk=8)
    process = start(workspace, ray.get_runtime_context().gcs_address, "die_after_four", str(photos), str(out))
    assert process.wait(150) == -signal.SIGKILL, process.communicate()
    assert not out.exists() and len([*workspace.folder.glob("out.csv.parts/0*.csv")]) == 4
    Path("fatal").write_text(str(os.getpid()))
    written = predict_to(predictor(), out, photos, chunk=8, engine="ray")
    assert not Path("fatal").exists()
    assert (written.n, written.n_errors, written.found) == (N, len(BROKEN), 4*8)
    assert written.agreement.strategy == "ray" and written.agreement.greatest_difference == 0
    assert out.read_bytes() == whole.read_bytes()
    notes = [json.loads(file.with_name(f"{file.name}.json").read_text()) for file in (out, whole)]
    assert notes[0]["job"] == notes[1]["job"] and notes[0]["sha256"] == notes[1]["sha256"]


def two_seeds(engine: str = "ray", name: str = "pressed") -> None:
    repeat(CONFIG, seeds=2, name=name, own={**QUIET, "callbacks": [Slow()]}, engine=engine)


def test_an_interrupt_pauses_all_of_them(ray, folder, workspace, monkeypatch):
    "They are saved, nothing goes on behind, and the same call goes on; the cluster of somebody else stays."
    monkeypatch.chdir(folder)
    workspace.folder = folder
    Path("fast").unlink(missing_ok=True)
    process = start(workspace, ray.get_runtime_context().gcs_address, "two_seeds")
    runs = [Run(folder/"runs"/"pressed"/f"seed_{seed}") for seed in (42, 43)]
    wait_for(lambda: all(run.last.exists() for run in runs) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=150)
    assert "what was being trained is saved. repeat(..., name='pressed') goes on" in errors, errors[-3000:]
    assert not printed
    assert [run.summary().status for run in runs] == ["interrupted"] * 2
    Path("fast").touch()
    two_seeds()
    assert [run.summary().status for run in runs] == ["completed"] * 2
    assert [len(history(run).happened(Event.RESUMED)) for run in runs] == [1, 1]
    two_seeds("here", "unpressed")
    for run in runs: same_runs(run, Run(folder/"runs"/"unpressed"/run.name))
