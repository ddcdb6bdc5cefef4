"""What stands around the code, for who joins: it parses, and what it names is there.

Workflows, templates, CONTRIBUTING.md, SECURITY.md, CITATION.cff, the hooks, and the frame of the site.
"""
import ast
import re
import tomllib
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT/".github"
PAGES = ["CONTRIBUTING.md", "SECURITY.md", ".github/pull_request_template.md", ".pre-commit-config.yaml",
         ".github/workflows/test.yml", ".github/workflows/docs.yml", ".github/ISSUE_TEMPLATE/bug.yml", "_quarto.yml"]
MADE = {"nbs/09b_brightness.ipynb", "imgcls/brightness.py", "nbs/published.yml"}   # by who follows, and when publishing


def read(name: str) -> str: return (ROOT/name).read_text(encoding="utf-8")


def parsed(name: str): return yaml.load(read(name), yaml.BaseLoader)        # `on:` stays a text


@cache
def commands() -> set[str]:
    "Every command of this environment and of the project."
    return {entry.name for entry in entry_points(group="console_scripts")} | \
        {*tomllib.loads(read("pyproject.toml"))["project"]["scripts"]}


def unknown(text: str) -> list[str]:
    "Targets, commands, files and rooms that a page names and that do not exist."
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.M))
    files = re.findall(r"(?<![\w/.])(?:nbs|tests|imgcls|\.github)/[\w./-]*\w\.(?:ipynb|py|yml|scss|md)\b", text)
    rooms = re.findall(r"`(\d\d[a-z]?_\w+)`", text)
    return [*(f"make {t}" for t in re.findall(r"(?:`|run: |^)make ([a-z]+)\b", text, re.M) if t not in targets),
            *(c for c in re.findall(r"(?<![\w./-])(?:imgcls|nbdev)-[a-z][a-z-]*\b", text) if c not in commands()),
            *(f for f in files if f not in MADE and not (ROOT/f).is_file()),
            *(r for r in rooms if not (ROOT/"nbs"/f"{r}.ipynb").is_file())]


@pytest.mark.parametrize("name", PAGES)
def test_what_is_named_is_there(name): assert not unknown(read(name))


@pytest.mark.parametrize("text", ["`make nothing`", "    run: make nothing", "imgcls-nothing", "nbdev-nothing",
                                  "see tests/nothing.py", "`99_nothing`"])
def test_what_is_missing_is_found(text): assert len(unknown(text)) == 1


@pytest.mark.parametrize("name", ["test", "docs"])
def test_workflows(name):
    "The fewest rights; a limit for each job; actions by their major version; one run at a time."
    flow = parsed(f".github/workflows/{name}.yml")
    assert flow["permissions"] == {"contents": "read"} and flow["concurrency"]["group"].startswith(name)
    for job in flow["jobs"].values():
        assert int(job["timeout-minutes"]) <= 120 and job["steps"]
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            if "uses" in step: assert re.fullmatch(r"[\w-]+/[\w-]+(/[\w-]+)?@v\d+", step["uses"])
            assert "${{ github.event." not in step.get("run", "")       # a title could hold a command
    assert name == "test" or flow["jobs"]["publish"]["permissions"] == {"pages": "write", "id-token": "write"}


def test_pythons_and_rooms_of_the_workflow():
    jobs = parsed(".github/workflows/test.yml")["jobs"]
    pythons = jobs["elsewhere"]["strategy"]["matrix"]["python"]
    lowest = tomllib.loads(read("pyproject.toml"))["project"]["requires-python"].removeprefix(">=")
    assert pythons[0] == lowest == jobs["everything"]["steps"][1]["with"]["python-version"]
    rooms = re.search(r"\^\(([\w|]+)\)\[\.\]ipynb\$", read(".github/workflows/test.yml"))[1].split("|")
    assert len(rooms) > 3 and all((ROOT/"nbs"/f"{room}.ipynb").is_file() for room in rooms)


def test_one_version_of_quarto():
    version, = re.findall(r"version: ([\d.]+)", read(".github/workflows/docs.yml"))
    assert f"version {version}" in read("Makefile")


def test_forms_for_issues():
    forms = sorted(file.stem for file in (GITHUB/"ISSUE_TEMPLATE").glob("*.yml") if file.stem != "config")
    assert forms == ["bug", "feature", "question"]
    for name in forms:
        form = parsed(f".github/ISSUE_TEMPLATE/{name}.yml")
        assert form["name"] and form["description"]
        assert [part["attributes"]["label"] for part in form["body"]] and len(form["body"]) > 1
        ids = [part["id"] for part in form["body"]]
        assert len(ids) == len(set(ids))
    assert "imgcls.environment()" in read(".github/ISSUE_TEMPLATE/bug.yml")


def test_citation():
    cited, project = parsed("CITATION.cff"), tomllib.loads(read("pyproject.toml"))["project"]
    version = re.search(r'^__version__ = "(.+)"', read("imgcls/__init__.py"), re.M)[1]
    assert cited["version"] == version and cited["license"] == project["license"]
    assert [a["name"] for a in cited["authors"]] == [a["name"] for a in project["authors"]]
    assert {"cff-version", "message", "title", "type"} <= {*cited}


def test_hooks_need_no_other_host():
    hooks, = parsed(".pre-commit-config.yaml")["repos"]
    assert hooks["repo"] == "local" and {hook["language"] for hook in hooks["hooks"]} == {"system"}
    assert {hook["entry"].split()[0] for hook in hooks["hooks"]} == {"nbdev-clean", "nbdev-export", "ruff"}


def test_the_room_of_the_guide_runs():
    "The cells of CONTRIBUTING.md's smallest room: its directives, its code, its lesson."
    block = next(text for text in re.findall(r"```\n(.*?)```", read("CONTRIBUTING.md"), re.S) if "default_exp" in text)
    cells = [cell.strip() for cell in re.split(r"^-{20,}$", block, flags=re.M)]
    names: dict = {}
    for i, cell in enumerate(cells, 1):
        if i in (2, 3, 6, 9) or "nbdev" in cell: continue       # those that it calls Markdown
        ast.parse(cell)
        exec(cell, names)
    assert names["brightness"](names["white"]) == 1 and len(cells) == 10


def test_the_site_loads_nothing_from_elsewhere():
    config = parsed("_quarto.yml")
    for name in ("_quarto.yml", "nbs/theme.scss", "nbs/dark.scss", "nbs/styles.css", "nbs/404.qmd"):
        assert not re.search(r"https?:|//cdn|@import|@font-face", read(name)), name
    themes = config["format"]["html"]["theme"]
    for kind in ("light", "dark"):      # the first that says $web-font-path wins, and own files stand before cosmo's
        assert themes[kind][:2] == ["cosmo", "theme.scss"]
        assert all((ROOT/"nbs"/name).is_file() for name in themes[kind][1:])
    assert re.search(r"^\$web-font-path: false;", read("nbs/theme.scss"), re.M)
    assert config["format"]["html"]["html-math-method"] == "mathml"
    assert (ROOT/"nbs"/config["website"]["favicon"]).is_file() and "404.qmd" in config["project"]["render"]
    assert "nbdev.yml" not in config["metadata-files"]          # its address would be "/"


def test_the_page_for_wrong_addresses_has_a_head():
    head = yaml.safe_load(read("nbs/404.qmd").split("---")[1])
    assert head["title"] and head["toc"] is False and head["search"] is False
