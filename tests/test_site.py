"""The site: its navigation is in step with the notebooks, and its checks find what they are for."""
from pathlib import Path

import pytest
import sidebar
import staged

from imgcls.pages import book_of


def page(name: str, *texts: str, outputs=()) -> staged.Staged:
    cells = [{"cell_type": "markdown", "source": text} for text in texts]
    return staged.Staged(name, (*cells, {"cell_type": "code", "source": "f()", "outputs": list(outputs)}))


def test_navigation_is_in_step():
    assert not sidebar.differences(), "run python tests/sidebar.py"


def test_every_page_is_in_the_navigation():
    text = (sidebar.NBS/"sidebar.yml").read_text(encoding="utf-8")
    pages = [file.relative_to(sidebar.NBS).as_posix() for file in sidebar.NBS.rglob("*.ipynb")]
    missing = [name for name in pages if not any(part.startswith((".", "_")) for part in Path(name).parts)
               and name not in text]
    assert not missing, f"name them in tests/sidebar.py: {missing}"


@pytest.mark.parametrize("text, problem", [
    ("[a](b.html)", "leads to no page"), ("[a](two.html#x)", "leads to no place"), ("[a](#x)", "leads to no place"),
    ("[a](two.html#the-end)", ""), ("[a](two.html#Learner.fit)", ""), ("[a](#here)", ""), ("`[a](b.html)`", ""),
    ("[a](https://b.c)", ""), ("[a](picture.png)", ""), ("```\n[a](b.html)\n```", ""),
    ('```{=html}\n<a href="b.html">b</a>\n```', "leads to no page")])
def test_dead_links_are_found(text, problem):
    two = page("two.html", "## The end", "### Learner.fit {#Learner.fit}")
    found = staged.dead_links([page("one.html", text, "## Here"), two], {"picture.png"})
    assert bool(found) == bool(problem) and all(problem in line for line in found)


@pytest.mark.parametrize("text", ["a `__main__.X`".replace("`", ""), "show_doc(f)", "x=<factory>", "#| export: true",
                                  '```{=html}\n<img alt="x" src="https://a.b/c.png">\n```'])
def test_what_is_left_behind_is_found(text):
    assert len(staged.left_behind([page("one.html", text)])) == 1
    assert not staged.left_behind([page("one.html", "a text")])


def test_outputs_of_html_are_found():
    assert staged.left_behind([page("one.html", outputs=[{"data": {"text/html": "<b>x</b>"}}])])


@pytest.mark.parametrize("name", ["99_nowhere", "tutorials/nothing", "Learner.fitt", "Learner.fitt(3)",
                                  "split_folders('a')", "imgcls-checks photos"])
def test_unknown_names_are_found(name):
    book = book_of(staged.ROOT)
    assert staged.unknown_names([page("one.html", f"See `{name}`.")], book)
    assert staged.unknown_names([page("one.html", "```\nx = predictor.predict_too('a')\n```")], book)
    known = ["split_folder('a')", "imgcls-check photos", "imgcls-shared", "os.getcwd()"]
    known += ["33_training", "tutorials/resume", "Learner.fit(3)", "Learner.state", "Predictions.to_csv", "Other.thing"]
    assert not staged.unknown_names([page("one.html", f"See `{name}`.") for name in known], book)


def test_doubled_places_are_found():
    assert staged.doubled([page("one.html", "### Sweep {#Sweep}", "### Sweep {#Sweep}")])
    assert not staged.doubled([page("one.html", "### Sweep {#Sweep}", "### sweep {#sweeps.sweep}", "## Sweep")])


def test_code_that_is_none_is_found():
    def code(text: str) -> staged.Staged: return staged.Staged("one.html", ({"cell_type": "code", "source": text},))
    assert staged.no_python([code("f(1")]) and not staged.no_python([code("f(1)"), code("%pip list"), code("!ls")])


@pytest.mark.parametrize("heading, place", [
    ("Where next", "where-next"), ("`fit`, and what it gives", "fit-and-what-it-gives"),
    ("1. A [link](x.html)", "a-link"), ("What's new?", "whats-new")])
def test_places_are_those_of_pandoc(heading, place):
    assert staged.slug(heading) == place
