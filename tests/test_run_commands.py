"""imgcls-runs and imgcls-visualise: as processes where that is what is asked, else by their arguments."""
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.evaluation import Evaluation
from imgcls.run_commands import runs_command, visualise_command
from imgcls.runs import Hold, Run
from imgcls.summaries import Summary

RIGHT = {"base": 0.6, "better": 0.95}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    "A workspace with two runs that answered about forty images."
    monkeypatch.chdir(tmp_path)
    (tmp_path/"settings.ini").write_text("[imgcls]\n")
    paths = [tmp_path/"images"/f"{i}.png" for i in range(40)]
    paths[0].parent.mkdir()
    for i, path in enumerate(paths): Image.new("RGB", (16, 16), (6*i, 0, 0)).save(path)
    for seed, (name, right) in enumerate(RIGHT.items()):
        run, said = Run.create(tmp_path/"runs", name), np.random.default_rng(seed).random(40) < right
        evaluation = Evaluation(np.where(said[:, None], [0.9, 0.1], [0.2, 0.8]), [0]*40, ["cat", "dog"], paths, "test")
        evaluation.to_csv(run.predictions_path("test"))
        found = {"accuracy": evaluation.accuracy, "accuracy_interval": [*evaluation.accuracy_interval]}
        run.write_summary(Summary(status="completed", epoch=3, n_epochs=3, config={"optimizer": {"lr": 10.0**-seed}},
                                  final={"test": found}))
    return tmp_path


def process(home: Path, command: str, *words: str, **options) -> subprocess.Popen:
    code = f"import sys; from imgcls.run_commands import {command}; sys.exit({command}())"
    return subprocess.Popen([sys.executable, "-c", code, *words], cwd=home, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=os.environ | {"COLUMNS": "100"}, **options)


def test_a_process_lists_and_a_wrong_one_says_why(home):
    good = process(home, "runs_command", "list", "--where", "test_accuracy>0.8", "--format", "json",
                   "--columns", "name,lr")
    bad = process(home, "runs_command", "delete", "base")               # nobody can be asked
    out, errors = good.communicate(timeout=100)
    assert (good.returncode, json.loads(out), errors) == (0, [{"name": "better", "lr": 0.1}], "")
    out, errors = bad.communicate(timeout=100)
    assert (bad.returncode, out) == (1, "") and errors.count("\n") == 1 and "--yes" in errors
    assert (home/"runs"/"base"/"summary.txt").exists()


def test_tensorboard_runs_until_it_is_interrupted(home):
    started = process(home, "visualise_command", "tensorboard", "base", "--port", "0")
    try:
        said = started.stdout.readline()
        address = re.search(r"TensorBoard shows base at (http\S+)", said)[1]
        with urllib.request.urlopen(f"{address}data/runs", timeout=60) as answer: assert json.load(answer) == []
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=60)
        assert started.returncode == 130 and "Traceback" not in errors, errors
        assert "There is nothing for TensorBoard yet" in errors
    finally:
        started.kill()
        started.communicate()


def test_compare(home, capsys):
    assert runs_command(["compare", "base", "better", "--flips", "2"]) == 0
    out = capsys.readouterr().out
    assert "better is right more often on images like these 40 test images" in out
    assert "Images were matched by their paths" in out and "optimizer.lr" in out and "Flipped images, 2 of" in out
    shutil.copytree(home/"runs"/"base", home/"runs"/"third")
    assert runs_command(["compare", "base", "better", "third"]) == 0
    out = capsys.readouterr().out
    assert "2 comparisons with base, each a test of its own." in out and "No difference of accuracy is shown" in out
    assert runs_command(["compare", "base", "better", "--split", "val"]) == 1
    assert "no predictions of 'val'" in capsys.readouterr().err


@pytest.mark.parametrize("words, said", [
    (["list", "--where", "test_acuracy>1"], "Did you mean 'test_accuracy'?"), (["show", "bse"], "Did you mean 'base'?"),
    (["list", "--where", "name"], "a name, one of = !="), (["list", "--runs", "nowhere"], "must be a folder of runs"),
    (["compare", "base"], "Two runs at least"), (["delete", "images", "--yes"], "is no run")])
def test_what_is_wrong_is_said(home, capsys, words, said):
    assert runs_command(words) == 1
    out, errors = capsys.readouterr()
    assert said in errors and not out and "Traceback" not in errors


def test_usage_is_2(home, capsys):
    for words in ([], ["lst"], ["show"], ["list", "--format", "xml"]):
        with pytest.raises(SystemExit) as end: runs_command(words)
        assert end.value.code == 2
    with pytest.raises(SystemExit) as end: visualise_command(["samples", "--n", "many"])
    assert end.value.code == 2
    capsys.readouterr()


def test_delete_asks_and_takes_no_for_an_answer(home, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    answers = iter(["n", "y"])
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    assert runs_command(["delete", "base"]) == 0
    assert "is kept" in capsys.readouterr().out and (home/"runs"/"base").exists()
    assert runs_command(["delete", "base"]) == 0
    assert re.search(r"Run 'base' is deleted: .* freed", capsys.readouterr().out)
    assert not (home/"runs"/"base").exists() and not (home/"runs"/".imgcls-deleted").exists()


def test_delete_leaves_a_run_that_trains(home, capsys):
    hold = Hold(Run.open("better"))
    hold.take()
    try: assert runs_command(["delete", "better", "--yes"]) == 1
    finally: hold.release()
    assert "is being trained already" in capsys.readouterr().err and (home/"runs"/"better"/"summary.txt").exists()


def test_delete_takes_all_that_are_named_or_none(home, capsys):
    runs, elsewhere = home/"runs", home/"elsewhere"/"y"
    shutil.copytree(runs/"base", elsewhere)
    (runs/"link").symlink_to(elsewhere)
    shutil.copytree(runs/"base", home/"here")
    (home/"config.yaml").write_text("a: 1")             # a project is no run
    (runs/"better"/"notes").mkdir()
    for word, said in {"link": "is a link", "here": "A name without a folder", ".": "Only the folder of a run",
                       "runs/base/predictions_test.csv": "its name or its folder", "better": "'notes'"}.items():
        assert runs_command(["delete", "base", word, "--yes"]) == 1
        assert said in capsys.readouterr().err
        assert all((folder/"summary.txt").exists() for folder in (runs/"base", runs/"better", elsewhere, home/"here"))
    assert runs_command(["delete", "./here", "runs/base", "--yes"]) == 0
    assert capsys.readouterr().out.count("is deleted") == 2 and not (home/"here").exists()


def test_sync_says_what_is_left(home, capsys, monkeypatch):
    said = {"base": [True], "better": []}
    monkeypatch.setattr("imgcls.tracking.sync", lambda run, seconds: said[run.name], raising=False)
    assert runs_command(["sync", "base", "better", "--seconds", "3"]) == 0
    assert capsys.readouterr().out == "base: True\nbetter: nothing waits to be delivered\n"
    said["better"] = [False]
    assert runs_command(["sync", "base", "better"]) == 1
    capsys.readouterr()


def test_pictures(home, capsys):
    assert visualise_command(["mistakes", "base", "--n", "3"]) == 0
    assert re.fullmatch(r"mistakes\.png: 3 of \d+ mistakes among 40 test images of base\n", capsys.readouterr().out)
    assert Image.open(home/"mistakes.png").format == "PNG"
    before = (home/"mistakes.png").read_bytes()
    assert visualise_command(["mistakes", "base"]) == 1                 # nothing is replaced in silence
    assert "--overwrite" in capsys.readouterr().err and (home/"mistakes.png").read_bytes() == before
    assert visualise_command(["--mode", "mistakes", "--run_dir", "runs/base", "--overwrite"]) == 0
    assert (home/"mistakes.png").read_bytes() != before
    shutil.rmtree(home/"images")
    assert visualise_command(["predictions", "base"]) == 1
    assert "there is no such file" in capsys.readouterr().err and not (home/"predictions.png").exists()


def test_show_says_how_to_do_it_again(home, capsys):
    run = Run.open("base")
    summary = run.summary()
    summary.environment = {"git_commit": "abc", "python": "3.11", "imgcls": "0"}
    summary.objects, summary.notes = {"network": "MyNet"}, ["First.", "Second."]
    summary.environment["own_code"] = {"mine.Net": "abc"}
    summary.final["test"]["images"] = 1
    run.write_summary(summary)
    run.patch_path.write_text("# changes")
    assert runs_command(["show", "base"]) == 0
    out = capsys.readouterr().out
    assert "git checkout abc && git apply" in out and "imgcls-reproduce" in out
    assert "network came from a notebook" in out
    assert "config.yaml" in out and "cannot be read here" in out        # it has none
    assert re.search(r"\n  notes +First\.\n +Second\.\n", out) and re.search(r"mine\.Net +named by the config", out)
    assert "on 1 image\n" in out
