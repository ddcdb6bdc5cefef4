"The commands that ask a run, as processes of a shell: a good call and a wrong one of each."
import sys
from pathlib import Path

import pytest
from conftest import Workspace, output_of

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    "With a run called 'small'."
    made = Workspace(tmp_path_factory.mktemp("commands"))
    made.few_digits()
    said = made.start("--config", "digits", "--architecture", "tiny_net", "--size", "16", "--num_epochs", "1",
                      "--name", "small")
    out, _ = output_of(said)
    assert said.returncode == 0, out
    return made


GOOD = {
    "imgcls-predict": (["small", "data/digits/3", "--format", "jsonl"], '"predicted"'),
    "imgcls-evaluate": (["small", "--split", "val", "--rows", "2"], "Confusion matrix (true class by row)"),
    "imgcls-export": (["small", "out", "--formats", "safetensors"], "safetensors"),
    "imgcls-verify": (["small", "--steps", "4", "--at", "2"], "identical, bit for bit"),
}
WRONG = {
    "imgcls-predict": ["smal", "data/digits/3"],
    "imgcls-evaluate": ["small", "--split", "tset"],
    "imgcls-export": ["small", "out2", "--formats", "onyx"],
    "imgcls-verify": ["smal"],
}


def test_good_calls(workspace):
    "Two of them in a process that has loaded nothing."
    started = {name: workspace.launch(str(BIN/name), *words, fresh=name in ("imgcls-predict", "imgcls-export"))
               for name, (words, _) in GOOD.items()}
    for name, process in started.items():
        out, err = output_of(process)
        assert process.returncode == 0 and GOOD[name][1] in out, (name, out[-500:], err[-500:])


def test_wrong_calls(workspace):
    started = {name: workspace.launch(str(BIN/name), *words) for name, words in WRONG.items()}
    for name, process in started.items():
        out, err = output_of(process)
        assert process.returncode == 1 and f"{name}: " in err and "Traceback" not in err, (name, out, err)
