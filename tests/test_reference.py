"""The pages of nbs/reference are made from the package, so they can fall behind it: here they are made anew.

Every cell of a page that is not a lesson (`#| echo: false`) is run as `nbdev-test` does, and what it shows must be
what is stored. Cells that train or type a command are left to `nbdev-test`: what they show is no list of parts.
"""
import ast
import json
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from execnb.shell import CaptureShell
from IPython.core.interactiveshell import InteractiveShell

ROOT = Path(__file__).resolve().parents[1]
PLACE = Path("nbs")/"reference"
TRAINS = {"commands": r"\btyped\(", "run_folder": r"\b(tree|works|iterdir)\("}     # cells that need a run


def made(page: str, root: Path = ROOT) -> list[tuple[str, str]]:
    "What each generated cell shows, as it is stored and as it is made now."
    cells = [cell for cell in json.loads((root/PLACE/f"{page}.ipynb").read_text())["cells"]
             if cell["cell_type"] == "code"]
    found, here = [], os.getcwd()
    os.chdir(root/PLACE)
    try:
        shell = CaptureShell(mpl_format=None)
        for cell in cells:
            source = "".join(cell["source"])
            generated = source.startswith("#| echo: false") and not re.search(TRAINS.get(page, "(?!)"), source)
            if not (generated or imports_only(source)): continue
            outputs = shell.run(source)
            if shell.exc: raise shell.exc
            if generated: found.append((shown(cell["outputs"]), shown(outputs)))
    finally:
        os.chdir(here)
        InteractiveShell.clear_instance()   # or every later test of this process would run in a shell of IPython
    return found


def imports_only(source: str) -> bool:
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(source).body)


def shown(outputs: list[dict]) -> str:
    "Texts and HTML; of an object that shows itself in several ways the richest one."
    texts = []
    for output in outputs:
        data = output.get("data", {})
        text = next((data[kind] for kind in ("text/html", "text/markdown", "text/plain") if kind in data),
                    output.get("text", ""))
        texts.append("".join(text))
    return re.sub(r"\s+", " ", re.sub(r"\busage:.*?\n\n", "", "".join(texts), flags=re.S)).strip()


def stale(page: str, root: Path = ROOT) -> list[str]:
    "What is shown now and is not stored."
    pairs = made(page, root)
    assert any(stored for stored, _ in pairs), f"{page} stores nothing"
    return [now for stored, now in pairs if now != stored]


PAGES = ("rooms", "names", "config", "commands", "run_folder")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_what_the_package_says(page):
    assert stale(page) == [], f"Run nbs/reference/{page}.ipynb again: nbdev-test nbs/reference/{page}.ipynb --save"


def test_every_page_is_here():
    assert {file.stem for file in (ROOT/PLACE).glob("[!_.]*.ipynb")} == {*PAGES}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    "The notebooks and modules, to be spoiled."
    (tmp_path/PLACE).mkdir(parents=True)
    for file in (ROOT/PLACE).glob("*.ipynb"): shutil.copy(file, tmp_path/PLACE)
    for file in (ROOT/"nbs").glob("[0-9]*.ipynb"): (tmp_path/"nbs"/file.name).symlink_to(file)
    shutil.copytree(ROOT/"imgcls", tmp_path/"imgcls", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT/"pyproject.toml", tmp_path)
    return tmp_path


def test_a_new_room_is_found(copy):
    text = "".join(["#| default_exp: attic\n", "# Attic\n\n> What is under the roof?"])
    cell = {"cell_type": "markdown", "source": [text]}
    (copy/"nbs"/"59_attic.ipynb").write_text(json.dumps({"cells": [cell]}))
    assert "What is under the roof?" in "".join(stale("rooms", copy))


def test_a_new_public_name_is_found(copy):
    file = copy/"imgcls"/"learner.py"
    file.write_text(file.read_text() + '\n\ndef quite_new():\n    "Something that nobody knew."\n')
    assert "Something that nobody knew." in "".join(stale("names", copy))
    file.write_text(file.read_text() + '\n\n@patch\ndef sing(self: Learner):\n    "A song."\n')
    assert "Learner.sing" in "".join(stale("names", copy))


@contextmanager
def replaced(module: str, name: str, value: object) -> Iterator[None]:
    before = getattr(sys.modules[module], name)
    setattr(sys.modules[module], name, value)
    try: yield
    finally: setattr(sys.modules[module], name, before)


def test_a_new_key_and_another_limit_are_found():
    import imgcls.experiment
    from imgcls.core import ConfigError

    @dataclass(frozen=True, kw_only=True)
    class Grown(imgcls.experiment.ExperimentConfig):
        quite_new: int = 3              # what nobody knew
        def __post_init__(self):
            if self.seed < 5: raise ConfigError("the seed must be >= 5")

    assert [f.name for f in fields(Grown)][-1] == "quite_new"
    aliases = {**imgcls.experiment.ALIASES, "short": ("seed",)}
    with replaced("imgcls.experiment", "ExperimentConfig", Grown), replaced("imgcls.experiment", "ALIASES", aliases):
        found = "".join(stale("config"))
    assert "quite_<wbr>new" in found and "whole number, &gt;= 5" in found and "<code>short</code>" in found


def test_a_new_flag_and_a_new_command_are_found(copy):
    import imgcls.cli
    before = imgcls.cli.train_parser

    def with_one_more():
        parser = before()
        parser.add_argument("--quite_new", help="what nobody knew")
        return parser

    with replaced("imgcls.cli", "train_parser", with_one_more): assert "--quite_new" in "".join(stale("commands"))
    project = copy/"pyproject.toml"
    project.write_text(project.read_text().replace("imgcls-verify =", "imgcls-brew ="))
    assert "imgcls-brew" in tomllib.loads(project.read_text())["project"]["scripts"]
    with pytest.raises(KeyError, match="imgcls-"): made("commands", copy)


def test_a_new_setting_is_found():
    from imgcls.settings import Settings

    @dataclass(frozen=True, kw_only=True)
    class Grown(Settings):
        colour: str = "blue"            # of the walls

    with replaced("imgcls.settings", "Settings", Grown): assert "of the walls" in "".join(stale("run_folder"))
