"""Checking and dividing from a shell: in processes of their own, and a kill in the middle."""
import io
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import LIMIT, Workspace, output_of
from PIL import Image

from imgcls import audit as audit_room
from imgcls import duplicates, manifests
from imgcls.data import ImageData
from imgcls.data_commands import check_command, split_command
from imgcls.datasets import ImageTable
from imgcls.samples import write_photos

PROGRAM = "import sys; from imgcls.data_commands import {0}_command; sys.exit({0}_command())"


@pytest.fixture
def photos(tmp_path: Path) -> Path: return write_photos(tmp_path/"photos")


def run(workspace: Workspace, command: str, *words: str) -> tuple[int, str, str]:
    "A command in a process of its own: exit code, standard output, standard error."
    process = workspace.launch(sys.executable, "-c", PROGRAM.format(command), *words, fresh=command == "check")
    out, err = output_of(process)
    return process.returncode, out, err


def test_check_and_split_in_processes_of_their_own(workspace, photos):
    shutil.copy(photos/"china"/"060.png", photos/"flower"/"wrong.png")
    code, out, err = run(workspace, "check", "photos", "--html", "page.html")
    assert code == 0 and "under several labels" in out and "Traceback" not in err
    page = (workspace.folder/"page.html").read_text()
    assert page.count("data:image/jpeg;base64") >= 2 and "http" not in page
    code, out, err = run(workspace, "split", "photos", "divided")
    assert code == 0 and out.split("\n")[0].split() == ["class", "train", "val", "test", "all"] and "index.csv" in err
    table = ImageTable.from_csv(workspace.folder/"divided"/"index.csv")
    wrong = table.frame[table.frame["path"].str.contains("wrong|china/060")]
    assert len(table) == 209 and wrong["split"].nunique() == 1 and len(wrong) == 2
    assert ImageData.from_csv(workspace.folder/"divided"/"index.csv", 16, group_column="group").sizes["train"] > 100


def test_a_kill_leaves_no_half_division(workspace, photos):
    for i in range(2000): (photos/"china"/f"again{i}.png").hardlink_to(photos/"china"/"060.png")
    process = workspace.launch(sys.executable, "-c", PROGRAM.format("split"), "photos", "out", "--copy",
                               "--near_copies", "no")
    started = time.monotonic()
    while not list(workspace.folder.glob(".out.*/train/*/*.png")):      # in the middle of it
        assert time.monotonic() - started < LIMIT and process.poll() is None, output_of(process)
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    output_of(process)
    assert not (workspace.folder/"out").exists()
    assert split_command([str(photos), str(workspace.folder/"out"), "--link", "--near_copies", "no"]) == 0
    assert len(ImageTable.from_folder(workspace.folder/"out")) == 2208
    assert not list(workspace.folder.glob(".out.*"))        # what the killed one left is swept


def test_no_bars_in_a_log(photos, monkeypatch):
    "A bar is redrawn by carriage returns, which fill a log."
    disabled = []

    def bar(items: Iterable, *words: object, **options: object) -> Iterable:
        disabled.append(options["disable"])
        return items

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for room in (audit_room, duplicates, manifests): monkeypatch.setattr(room, "tqdm", bar)
    table = ImageTable.from_folder(photos)
    audit_room.audit(table)
    duplicates.find_near(duplicates.look_at(table.paths()))
    manifests.contents(table.paths())
    assert len(disabled) >= 4 and all(disabled)


def test_a_spoiled_division_is_told(photos, tmp_path, capsys):
    "Divided, then spoiled: a smaller copy on the other side is found, and told."
    out = tmp_path/"divided"
    assert split_command([str(photos), str(out), "--ratios", "0.8", "0.2", "--copy"]) == 0
    assert check_command([str(out)]) == 0
    first = next(path for path in sorted((out/"train"/"flower").iterdir()) if 55 <= int(path.stem) <= 74
                 and path.stem not in ("062", "063", "064"))
    Image.open(first).resize((44, 44)).save(out/"val"/"flower"/"smaller.png")
    capsys.readouterr()
    assert check_command([str(out)]) == 1
    assert "1 image in several splits: 2 files, nearly equal" in capsys.readouterr().out
    (out/"val"/"flower"/"smaller.png").unlink()
    (out/"val"/"flower"/"broken.png").write_bytes(first.read_bytes()[:100])
    assert check_command([str(out)]) == 1


def test_the_same_split_whatever_the_folder_is_called(photos, tmp_path):
    other = tmp_path/"elsewhere"
    shutil.copytree(photos, other)
    for raw, out in [(photos, "a"), (other, "b")]:
        assert split_command([str(raw), str(tmp_path/out), "--seed", "3"]) == 0
    a, b = (ImageTable.from_csv(tmp_path/out/"index.csv").frame for out in "ab")
    assert a["split"].tolist() == b["split"].tolist()
    assert os.listdir(tmp_path/"a") == ["index.csv"]


@pytest.mark.parametrize("words", [["nowhere", "out"], ["photos", "photos"], ["photos", "out", "--group_column", "x"],
                                   ["photos", "out", "--ratios", "0.5", "0.6"], ["photos", "out", "--folds", "1"]])
def test_bad_input_is_a_line_and_nothing_is_written(words, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert split_command(words) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("imgcls-split: ") and "Traceback" not in said.err
    assert sorted(tmp_path.rglob("*")) == before
