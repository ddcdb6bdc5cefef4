"The files in examples/, run by their shell where everything they call only notes its words."
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from imgcls.cli import train_parser
from imgcls.sweep_command import sweep_parser

EXAMPLES = Path(__file__).parent.parent/"examples"
SCRIPTS = sorted(file.name for file in EXAMPLES.glob("*.sh"))
MANIFESTS = sorted(file.name for file in EXAMPLES.glob("*.yaml"))
NOTES = 'printf "%q " "${0##*/}" "$@" >> said.txt; echo >> said.txt\n'
CALLED = {          # what stands in for the programs of a cluster, and for ours
    "srun": 'exec "$@"', "torchrun": "", "imgcls-train": "", "imgcls-sweep": "", "scontrol": "[ $1 = show ] && echo n7",
    "scancel": "kill $(cat pid.txt)"}
WAITS = 'echo $$ > pid.txt; trap "exit 143" TERM; while :; do sleep 0.02; done'
SLURM = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n[7-8]", "SLURM_NNODES": "2", "SLURM_RESTART_COUNT": "1",
         "SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "3", "STORAGE": "sqlite:///studies.db"}


def start(here: Path, words: list[str], calls: Mapping[str, str] = CALLED) -> subprocess.Popen:
    programs = here/"programs"
    programs.mkdir(exist_ok=True)
    for name, does in calls.items():
        (programs/name).write_text(f"#!/bin/bash\n{NOTES}{does}\n")
        (programs/name).chmod(0o755)
    (here/"said.txt").write_text("")
    return subprocess.Popen(words, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=os.environ | SLURM | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"})


def said(here: Path, name: str) -> list[list[str]]:
    "The words with which a program was called, each time."
    lines = map(shlex.split, (here/"said.txt").read_text().splitlines())
    return [words for program, *words in lines if program == name]


def box_of(manifest: str) -> dict:
    "The one container of its Job."
    documents = yaml.safe_load_all((EXAMPLES/manifest).read_text())
    job = next(document for document in documents if document["kind"] == "Job")
    return job["spec"]["template"]["spec"]["containers"][0]


def words_of(name: str) -> list[str]:
    "As sbatch or a node of Kubernetes runs it."
    if name in SCRIPTS: return ["bash", str(EXAMPLES/name), "flowers.yaml"]
    box = box_of(name)
    return [word.replace("$(STORAGE)", SLURM["STORAGE"]) for word in [*box["command"], *box.get("args", [])]]


def ran(here: Path, name: str) -> None:
    process = start(here, words_of(name))
    assert (process.communicate(timeout=20)[0], process.returncode) == ("", 0)


def trained(here: Path) -> list[str]:
    "The words of the one training, whose flags exist."
    found = said(here, "imgcls-train")
    for words in said(here, "torchrun"):
        known = get_args_parser().parse_args(words)
        assert (known.module, known.training_script) == (True, "imgcls.cli") and known.nnodes == "2"
        assert known.training_script_args[0] == "train"
        found.append(known.training_script_args[1:])
    (words,) = found
    assert train_parser().parse_known_args(words)[1] == []
    return words


@pytest.mark.parametrize("name", ["slurm.sh", "kubernetes.yaml"])
def test_a_training_begins_and_goes_on(tmp_path: Path, name: str) -> None:
    "Anew where nothing was saved; what is there is put aside."
    ran(tmp_path, name)
    run = "flowers-42" if name in SCRIPTS else "flowers"
    begins = ["--config", "flowers.yaml", "--name", run]
    assert trained(tmp_path)[:4] == begins
    (tmp_path/"runs"/run).mkdir(parents=True)
    ran(tmp_path, name)
    assert trained(tmp_path)[:4] == begins
    (aside,) = (tmp_path/"runs").iterdir()
    assert aside.name.startswith(f"{run}-unsaved-")
    (tmp_path/"runs"/run/"weights").mkdir(parents=True)
    (tmp_path/"runs"/run/"weights"/"last.pt").touch()
    ran(tmp_path, name)
    assert trained(tmp_path)[:2] == ["--resume", run]


@pytest.mark.parametrize("name", ["slurm_sweep.sh", "kubernetes_sweep.yaml"])
def test_a_sweep(tmp_path: Path, name: str) -> None:
    ran(tmp_path, name)
    (words,) = said(tmp_path, "imgcls-sweep")
    chosen = sweep_parser().parse_args(words)
    assert (chosen.name, chosen.trials, chosen.storage) == ("rates", "50", SLURM["STORAGE"])
    assert chosen.words[0] == "flowers.yaml" and len(chosen.words) == 3


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_pauses_and_queues_again(tmp_path: Path, name: str, number: int) -> None:
    process = start(tmp_path, words_of(name), CALLED | dict.fromkeys(("torchrun", "imgcls-sweep"), WAITS))
    end = time.monotonic() + 20
    while not (tmp_path/"pid.txt").exists():
        assert time.monotonic() < end, "it did not start"
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=20)
    me = "42" if name == "slurm.sh" else "42_3"         # 42 alone means the whole array
    assert process.returncode == 143
    assert said(tmp_path, "scancel") == [["--signal=TERM", me]]
    assert said(tmp_path, "scontrol")[-1] == ["requeue", me]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_failure_is_not_queued_again(tmp_path: Path, name: str) -> None:
    process = start(tmp_path, words_of(name), CALLED | dict.fromkeys(("torchrun", "imgcls-sweep"), "exit 1"))
    process.communicate(timeout=20)
    assert process.returncode == 1 and not [words for words in said(tmp_path, "scontrol") if words[0] == "requeue"]


def test_the_page_shows_them() -> None:
    "In full, as they are."
    page = json.loads((EXAMPLES.parent/"nbs"/"tutorials"/"clusters.ipynb").read_text())
    shown = ["".join(cell["source"]) for cell in page["cells"]]
    for name in [*SCRIPTS, *MANIFESTS]:
        assert any((EXAMPLES/name).read_text().strip() in source for source in shown), f"{name} has changed"
