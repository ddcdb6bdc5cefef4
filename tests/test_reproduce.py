"A run that is steered from another process, and made again."
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import output_of

from imgcls.control import read_steering, write_steering
from imgcls.reproduce_command import reproduce_command
from imgcls.runs import Run

SMALL = ["--config", "digits", "--architecture", "tiny_net", "--size", "16", "--num_epochs", "2000", "--name", "twin"]
REPRODUCE = "import sys; from imgcls.reproduce_command import reproduce_command as c; sys.exit(c(sys.argv[1:]))"


def until(true: Callable[[], object], process, seconds: float = 60) -> None:
    "Wait for something that another process does."
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end and process.poll() is None, output_of(process, 5)[0]
        time.sleep(0.02)


def say(run: Path, **values) -> None:
    "Change the control file of a run, as an editor does."
    file = run/"control.yaml"
    file.write_text(write_steering({**read_steering(file.read_text()), **values}, file.read_text()))


def said(run: Path, text: str) -> int:
    "How often something stands in the log of a run."
    return (run/"logs"/"train.log").read_text().count(text)


@pytest.fixture(scope="module")
def twins(shared_workspace):
    "Two processes that start the same config at once; each is steered by its file, to its end."
    shared_workspace.few_digits()
    processes = [shared_workspace.start(*SMALL) for _ in range(2)]
    runs = [shared_workspace.folder/"runs"/name for name in ("twin", "twin_2")]
    for run in runs: until((run/"history.csv").is_file, processes[0])
    by_pid = {Run(run).summary().pid: run for run in runs}
    steered, interrupted = [(process, by_pid[process.pid]) for process in processes]
    for process, run in (steered, interrupted): until((run/"control.yaml").is_file, process)
    return shared_workspace, steered, interrupted


def test_two_processes_at_once_get_two_folders(twins):
    workspace, (_, one), (_, two) = twins
    assert {one.name, two.name} == {"twin", "twin_2"}
    assert sorted(file.name for file in (workspace.folder/"runs").iterdir()) == ["twin", "twin_2"]


def test_a_pause_from_the_file_ends_with_an_interrupt(twins):
    process, run = twins[2]
    say(run, pause=True)
    until(lambda: said(run, "control.yaml: pause: true"), process)
    before = (run/"history.csv").read_text()
    time.sleep(0.5)
    assert (run/"history.csv").read_text() == before        # it waits
    process.send_signal(signal.SIGINT)
    printed = output_of(process, 60)[0]
    assert process.returncode == 130 and "(SIGINT)" in printed and "Traceback" not in printed, printed
    assert read_steering((run/"control.yaml").read_text())["stop"] is False


def test_steered_from_outside(twins):
    process, run = twins[1]
    say(run, lr_factor=0.5)
    until(lambda: said(run, "control.yaml: lr_factor: 0.5"), process)
    say(run, save=True)
    until(lambda: not read_steering((run/"control.yaml").read_text())["save"], process)
    say(run, pause=True)
    until(lambda: said(run, "control.yaml: pause: true"), process)
    say(run, pause=False)
    until(lambda: said(run, "control.yaml: pause: false"), process)
    (run/"control.yaml").write_text("lr_factor: -1\n")
    until(lambda: said(run, "cannot be understood, so nothing changes: `lr_factor` must be a number > 0"), process)
    (run/"control.yaml").write_text("stop: true\n")
    printed = output_of(process, 60)[0]
    assert "(control.yaml)" in printed and "Traceback" not in printed, printed
    assert process.returncode == 130
    assert said(run, "cannot be understood") == 1
    assert read_steering((run/"control.yaml").read_text()) == {
        "lr_factor": 0.5, "pause": False, "save": False, "stop": False}


def test_reproduced_in_a_shell(twins, monkeypatch, capfd):
    workspace, (_, run), _ = twins
    process = workspace.launch(sys.executable, "-c", REPRODUCE, run.name)
    printed, errors = output_of(process)
    assert process.returncode == 0, printed + errors
    assert printed.startswith(f"Reproduced: '{run.name}' and '{run.name}_again' are the same, bit for bit"), printed
    monkeypatch.chdir(workspace.folder)
    data = run/"data.csv"
    data.write_text(data.read_text().replace("digits/0/", "digits/zero/"))
    assert reproduce_command([run.name]) == 1
    assert "NOT reproduced" in capfd.readouterr().out
    assert reproduce_command(["nowhere"]) == 1
    assert "imgcls-reproduce: There is no run 'nowhere'" in capfd.readouterr().err
    with pytest.raises(SystemExit) as ended: reproduce_command([])
    assert ended.value.code == 2
