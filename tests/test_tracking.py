"A real MLflow server: everything arrives, once, also when the server is killed in the middle; training never waits."
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Workspace, kill, output_of

if importlib.util.find_spec("mlflow") is None: pytest.skip("pip install mlflow", allow_module_level=True)


class Server:
    "An MLflow server on a port of its own; killed and started again as often as need be."

    def __init__(self, folder: Path):
        self.folder, self.process = folder, None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers",
                 "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination",
                 str(self.folder/"artifacts")]
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = subprocess.Popen(words, cwd=self.folder, env=environment, start_new_session=True,
                                        stdout=(self.folder/"server.log").open("ab"), stderr=subprocess.STDOUT)

    def wait(self, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2): return
            except OSError:
                if time.monotonic() > end: raise AssertionError((self.folder/"server.log").read_text()) from None
                time.sleep(0.1)

    def kill(self) -> None:
        group = self.process.pid
        kill(self.process, signal.SIGKILL)
        self.process.wait()
        end = time.monotonic() + 10
        while (left := alive(group)) and time.monotonic() < end: time.sleep(0.05)
        assert not left, left


def alive(group: int) -> list[str]:
    "What still runs of a process's session: MLflow starts workers."
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try: state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError: continue            # it has ended meanwhile
        if int(session) == group and state != "Z": found.append(stat.parent.joinpath("cmdline").read_text())
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    os.environ["MLFLOW_TRACKING_URI"] = server.uri          # as users say it
    yield server
    del os.environ["MLFLOW_TRACKING_URI"]
    server.kill()


SETUP = """
import torch; torch.set_num_threads(1)
import json, os, signal, sys, time
from imgcls import Callback, ImageData, Learner, Run
from imgcls.pipeline import write_reports
from imgcls.tracking import sync
class Slow(Callback):
    "A step takes its time, and is measured."
    longest, last = 0.0, None
    def __init__(self, pause=0.0): self.pause = pause
    def on_batch_end(self, state):
        time.sleep(self.pause)
        now = time.monotonic()
        if self.last is not None: Slow.longest = max(Slow.longest, now - self.last)
        self.last = now
    def on_epoch_end(self, state): self.last = None
data = ImageData.from_folder('data/digits', size=8)
def learner(name, n_epochs, trackers=('mlflow',), **more):
    return Learner(data, 'tiny_net', lr=0.02, batch_size=21, num_epochs=n_epochs, name=name, progress='pipe',
                   trackers=[*trackers], **more)
"""


def client(server: Server):
    from mlflow import MlflowClient
    return MlflowClient(server.uri)


def followed(server: Server, name: str):
    "The one MLflow run of a run."
    places = [experiment.experiment_id for experiment in client(server).search_experiments()]
    (found,) = client(server).search_runs(places, f"tags.`imgcls.run` = '{name}'")
    return found


def steps(server: Server, run, name: str = "training_loss") -> list[int]:
    return [metric.step for metric in client(server).get_metric_history(run.info.run_id, name)]


def rows(workspace: Workspace, name: str) -> list[dict[str, str]]:
    import csv
    with (workspace.folder/"runs"/name/"history.csv").open() as file: return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(server: Server, shared_workspace: Workspace) -> Workspace:
    "A training with reports, tracked; and what its twin without trackers gives."
    shared_workspace.few_digits()
    code = SETUP + """
from imgcls.checkpointing import weights_hash
(learn := learner('whole', 2, ['tensorboard', 'mlflow'], gradient_norms='epoch', experiment='digits', wait=60.0,
                  register='digits', upload_checkpoints=True)).fit()
write_reports(learn)
alone = learner('alone', 2, []).fit()
assert weights_hash(learn.network.state_dict()) == weights_hash(alone.network.state_dict())
assert learn.history.same_as(alone.history)
"""
    process = shared_workspace.launch(sys.executable, "-c", code)       # while the server starts
    errors = output_of(process)[1]
    assert process.returncode == 0, errors
    server.wait()
    if "imgcls-runs sync" in errors: shared_workspace.python("from imgcls.tracking import sync; sync('whole')")
    return shared_workspace


def test_everything_is_told(server: Server, trained: Workspace):
    run = followed(server, "whole")
    epochs = rows(trained, "whole")
    assert run.info.status == "FINISHED"
    assert steps(server, run) == list(range(1, 21)) and len(epochs) == 2
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        told = client(server).get_metric_history(run.info.run_id, name)
        assert [(metric.step, metric.value) for metric in told] == [(i + 1, float(row[name]))
                                                                    for i, row in enumerate(epochs)]
    final = {f"final/{split}_{name}" for split in ("train", "val", "test") for name in ("accuracy", "loss")}
    assert {"learning_rate", "grad_norm/total", *final} <= {*run.data.metrics}
    params = run.data.params
    assert (params["optimizer.lr"], params["training.num_epochs"], params["num_classes"]) == ("0.02", "2", "4")
    assert params["environment.torch"] and int(params["train_samples"]) == 210
    files = {file.path for folder in ("", "plots", "figures", "logs", "weights", "model")
             for file in client(server).list_artifacts(run.info.run_id, folder)}
    assert {"config.yaml", "environment.yaml", "summary.txt", "history.csv", "plots/confusion_matrix_test.png",
            "figures/mistakes_test.png", "logs/classification_report_val.txt", "weights/best.pt", "weights/last.pt",
            "model/MLmodel"} <= files
    assert not (trained.folder/"runs"/"whole"/"mlflow"/"refused.jsonl").exists()


def test_the_registered_model_answers(server: Server, trained: Workspace, tmp_path: Path):
    import mlflow
    import numpy as np
    versions = client(server).search_model_versions("name = 'digits'")
    assert [version.run_id for version in versions] == [followed(server, "whole").info.run_id]
    place = client(server).download_artifacts(followed(server, "whole").info.run_id, "model", str(tmp_path))
    model = mlflow.pyfunc.load_model(place)
    assert model.predict(np.zeros((3, 3, 8, 8), np.float32)).shape == (3, 4)
    assert model.metadata.metadata["class_names"] == [str(i) for i in range(4)]
    assert client(server).get_model_version("digits", "1").source.endswith("/model")


def test_killed_and_resumed_it_is_one_run_with_everything_once(server: Server, trained: Workspace):
    "kill -9 in the third epoch: what two epochs told is delivered by whoever comes next."
    code = SETUP + "learner('killed', 4, callbacks=[Slow(0.05)], wait=60.0).fit()"
    process = trained.launch(sys.executable, "-c", code)
    for line in process.stderr:
        if "epoch 2/4" in line: break
    kill(process)
    output_of(process)
    trained.python(SETUP + "Learner.from_run('killed', progress='pipe').resume(callbacks=[])")
    run = followed(server, "killed")
    assert run.info.status == "FINISHED" and steps(server, run) == list(range(1, 41))
    assert steps(server, run, "val_loss") == [1, 2, 3, 4]


def test_a_server_that_is_killed_delays_nothing_and_gets_everything(server: Server, trained: Workspace):
    code = SETUP + """
learn = learner('through', 12, callbacks=[Slow(0.1)], wait=120.0)
class Tell(Callback):
    def on_epoch_end(self, state): print('epoch', state.epoch, flush=True)
learn.fit(callbacks=[Tell()])
print('longest', Slow.longest, flush=True)
"""
    process = trained.launch(sys.executable, "-c", code)
    lines = iter(process.stdout.readline, "")
    assert next(line for line in lines if line == "epoch 1\n")
    while "through" not in {run.info.run_name for run in client(server).search_runs(["0"])}: time.sleep(0.2)
    server.kill()
    time.sleep(2)
    server.start()
    out, errors = output_of(process)
    assert process.returncode == 0, errors
    assert float(out.split("longest")[1]) < 5, out           # a request would wait for 10 s
    assert errors.count("cannot be reached") == 1 and errors.count("answers again") == 1, errors
    server.wait()
    run = followed(server, "through")
    assert steps(server, run) == list(range(1, 121))
    assert steps(server, run, "val_loss") == list(range(1, 13)) and run.info.status == "FINISHED"


def test_nobody_listens(workspace: Workspace):
    "Training ends as if nothing were, and leaves no process; it is said how to deliver."
    workspace.few_digits()
    code = SETUP + """
started = time.monotonic()
learner('lonely', 2, uri='http://127.0.0.1:9', wait=3.0).fit()
print(time.monotonic() - started)
import threading
assert not [thread for thread in threading.enumerate() if thread is not threading.main_thread()
            and not thread.name.startswith('tqdm')], threading.enumerate()
(delivery,) = sync('lonely', seconds=0.5)
assert not delivery and delivery.delivered == 0 and delivery.left > 5, delivery
"""
    process = workspace.launch(sys.executable, "-c", code)
    _, errors = output_of(process)
    assert process.returncode == 0, errors
    assert errors.count("cannot be reached") == 1 and "imgcls-runs sync lonely" in errors, errors
    target = json.loads((workspace.folder/"runs"/"lonely"/"mlflow"/"target.json").read_text())
    assert target["run_id"] is None and target["uri"] == "http://127.0.0.1:9"
