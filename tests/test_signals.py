"Real signals to real processes: an interrupt is a pause."
import os
import signal
import time
from pathlib import Path

import pytest
from conftest import output_of

SMALL = ["--config", "digits", "--architecture", "tiny_net", "--size", "16", "--num_epochs", "8"]


@pytest.fixture(scope="module")
def straight(shared_workspace):
    "The workspace with a run that nobody disturbed."
    shared_workspace.few_digits()
    shared_workspace.run(*SMALL, "--name", "straight")
    return shared_workspace


def wait_for(process, text: str) -> None:
    "Read what a process prints until a text comes."
    for line in process.stdout:
        if text in line: return
    raise AssertionError(f"{text!r} never came")


COMPARE = """
import sys, torch
from imgcls.checkpointing import first_difference
from imgcls.history import History
from imgcls.keeping import load_checkpoint
one_run, other_run = sys.argv[1:]
for file in ('last.pt', 'best.pt'):
    one, two = (load_checkpoint(f'runs/{name}/weights/{file}') for name in (one_run, other_run))
    for key in ('network', 'optimizer', 'epoch', 'batch', 'step', 'train_metrics', 'callbacks'):
        assert first_difference(one[key], two[key]) is None, (file, first_difference(one[key], two[key], key))
    h = [History(), History()]
    for history, saved in zip(h, (one, two)): history.load_state_dict(saved['history'])
    assert h[0].same_as(h[1]), h[0].difference(h[1])
print('equal')
"""


def equal_runs(workspace, a: str, b: str) -> str:
    "Compare final weights, optimizer and history of two runs, bit for bit."
    return workspace.python(COMPARE, a, b).strip()


@pytest.mark.parametrize(("number", "code", "workers"), [
    (signal.SIGINT, 130, "0"), (signal.SIGINT, 130, "2"), (signal.SIGTERM, 143, "2")])
def test_signal_saves_and_resume_is_exact(straight, number, code, workers):
    "One of the three in a fresh process, from the first import to the end of the interpreter."
    name, fresh = f"{number.name}_{workers}", number == signal.SIGTERM
    process = straight.start(*SMALL, "--name", name, "--num_workers", workers, fresh=fresh)
    wait_for(process, "epoch 1/8")
    time.sleep(0.15)                        # somewhere in the second epoch
    os.killpg(process.pid, number)          # as a terminal, Jupyter and Slurm do it: workers too
    printed = output_of(process, 60)[0]
    assert process.returncode == code, printed
    assert "Traceback" not in printed, printed
    assert f"({number.name})" in printed and f"imgcls-train --resume {name}." in printed, printed
    assert (straight.folder/"runs"/name/"summary.txt").read_text().startswith("status: interrupted")
    straight.run("--resume", name)
    assert (straight.folder/"runs"/name/"summary.txt").read_text().startswith("status: completed")
    assert equal_runs(straight, "straight", name) == "equal"


def test_second_interrupt_aborts_and_the_checkpoint_stands(straight):
    process = straight.start(*SMALL, "--name", "twice")
    wait_for(process, "epoch 2/8")
    for _ in range(2): process.send_signal(signal.SIGINT)
    output_of(process, 60)
    assert process.returncode == 130
    straight.run("--resume", "twice")
    assert equal_runs(straight, "straight", "twice") == "equal"


def test_kill_leaves_a_run_that_resumes(straight):
    process = straight.start(*SMALL, "--name", "killed")
    wait_for(process, "epoch 2/8")
    os.killpg(process.pid, signal.SIGKILL)
    output_of(process, 60)
    table = straight.python("from imgcls import list_runs; t = list_runs().set_index('name'); "
                            "print(t.status['killed'])")
    assert table.strip() == "died?"
    straight.run("--resume", "killed")
    assert equal_runs(straight, "straight", "killed") == "equal"


def test_workers_change_nothing(straight):
    straight.run(*SMALL, "--name", "workers", "--num_workers", "2")
    assert equal_runs(straight, "straight", "workers") == "equal"


def test_no_worker_is_left_behind(straight):
    "Every process of an interrupted run's group is gone."
    process = straight.start(*SMALL, "--name", "group", "--num_workers", "2")
    wait_for(process, "epoch 1/8")
    process.send_signal(signal.SIGINT)
    output_of(process, 60)
    left = [p for p in Path("/proc").glob("[0-9]*/stat")
            if (fields := p.read_text().rsplit(")", 1)[1].split())[2] == str(process.pid) and fields[0] != "Z"]
    assert not left


def test_run_folder_is_complete(straight):
    run = straight.folder/"runs"/"straight"
    wanted = ["config.yaml", "summary.txt", "history.csv", "logs/train.log", "weights/best.pt", "weights/last.pt",
              *(f"logs/classification_report_{s}.txt" for s in ("train", "val", "test")),
              *(f"plots/confusion_matrix_{s}.png" for s in ("train", "val", "test")),
              *(f"predictions_{s}.csv" for s in ("train", "val", "test"))]
    assert [f for f in wanted if not (run/f).is_file()] == []
    tags = straight.python("""
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
tags = EventAccumulator('runs/straight/tensorboard').Reload().Tags()
print(sorted(tags['scalars']), sorted(tags['images']))""")
    for tag in ("training_loss", "epoch_train_loss", "epoch_train_accuracy", "epoch_val_loss",
                "epoch_val_accuracy", "learning_rate", "confusion_matrix_train", "confusion_matrix_val",
                "confusion_matrix_test"):
        assert f"'{tag}'" in tags, tags
