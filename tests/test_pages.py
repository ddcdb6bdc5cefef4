"""What a reader sees of a notebook without running it: its question, its outputs, its pictures in words.

Nothing is executed; `make test` runs the notebooks elsewhere. Each check has a test that it can fail.
"""
import ast
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

NOTEBOOKS = Path(__file__).resolve().parents[1]/"nbs"
LARGEST = 320_000       # bytes of what a notebook stores beside its text
SHORTEST = 20           # characters that say what is on a picture


@dataclass(frozen=True)
class Page:
    name: str               # 'tutorials/resume'
    cells: list[dict[str, Any]]
    size: int = 0           # bytes of its outputs


@cache
def pages() -> list[Page]:
    "Every notebook of the site."
    def page(file: Path) -> Page:
        cells = json.loads(file.read_text())["cells"]
        size = sum(len(json.dumps(cell.get("outputs", []))) for cell in cells)
        return Page(str(file.relative_to(NOTEBOOKS).with_suffix("")), cells, size)

    return [page(file)
            for file in sorted(NOTEBOOKS.rglob("*.ipynb"))
            if not any(part.startswith((".", "_")) for part in file.relative_to(NOTEBOOKS).parts)]


def code_page(source: str, *outputs: dict[str, Any]) -> Page:
    "A page of one code cell, for the tests of the tests."
    return Page("page", [{"cell_type": "code", "id": "c", "source": source, "outputs": [*outputs]}])


def shown(mime: str, value: str) -> dict[str, Any]: return {"output_type": "display_data", "data": {mime: value}}


def coded(page: Page) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    "Where it is, its source and its outputs, of each code cell."
    for cell in page.cells:
        if cell["cell_type"] == "code": yield f"{page.name}: {cell['id']}", "".join(cell["source"]), cell["outputs"]


def directive(source: str, name: str) -> str | None:
    "What is written behind `#| name`; None where it is not there."
    found = re.search(rf"^#\|[ \t]*{name}\b:?[ \t]*(.*)$", source, re.M)
    return found and found[1]


def texts(outputs: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    "Kind and text of each stored output; pictures inside HTML are left out."
    for output in outputs:
        if output["output_type"] == "stream": yield output["name"], "".join(output["text"])
        for mime, value in output.get("data", {}).items():
            if mime.startswith("text/"): yield mime, re.sub(r"base64,[\w+/=]+", "base64,", "".join(value))


# The question

def without_question(pages: list[Page]) -> list[str]:
    "Pages whose first text is not a title and a question in one line: nbdev leaves out whatever else stands there."
    missing = []
    for page in pages:
        first = next(("".join(cell["source"]) for cell in page.cells if cell["cell_type"] == "markdown"), "")
        if not re.fullmatch(r"# \S.*\n+> \S.*\n*", first): missing.append(page.name)
    return missing


def test_every_page_has_a_title_and_a_question():
    assert len(pages()) > 100
    found = without_question(pages())
    assert not found, "\n".join(found)


def test_pages_without_a_question_are_found():
    def page(text: str) -> Page: return Page("page", [{"cell_type": "markdown", "id": "m", "source": [text]}])
    assert not without_question([page("# Title\n\n> Which question?")])
    wrong = ["# Title\n\nText", "> Which?", "# Title\n\n> Which?\n\nA text.", "# Title\n\n> Which\n> one?"]
    assert len(without_question([page(text) for text in wrong] + [Page("page", [])])) == 5


# Outputs

VALUES = (ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp,
          ast.SetComp, ast.Compare, ast.BoolOp, ast.BinOp, ast.JoinedStr)


def gives_output(source: str) -> bool:
    "Does a cell surely show something? It ends in a value that is no call (of a call nobody knows), or prints."
    if any(directive(source, word) is not None for word in ("export", "exporti", "hide", "gpu", "slow")): return False
    if directive(source, "eval") == "false" or source.rstrip().endswith(";"): return False
    if re.match(r"\s*(#\|.*\s+)*%%", source): return False           # another language, or a file that is written
    tree = ast.parse(re.sub(r"^([ \t]*)[%!].*$", r"\1pass", source, flags=re.M))
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr): return False
    called = last.value.func if isinstance(last.value, ast.Call) else None
    return isinstance(last.value, VALUES) or (isinstance(called, ast.Name) and called.id == "print")


def without_output(pages: list[Page]) -> list[str]:
    "Cells that would show something, and have nothing stored."
    return [where for page in pages for where, source, outputs in coded(page) if gives_output(source) and not outputs]


def test_every_value_is_stored():
    found = without_output(pages())
    assert not found, "\n".join(found)


def test_values_without_output_are_found():
    bare = [code_page(source) for source in ("x = 1\nx", "a.table", "1 < 2, y[0]", "print(x)", "%pip list\nx")]
    assert len(without_output(bare)) == 5
    assert not without_output([code_page(source) for source in ("x = 1", "test_eq(x, 1)", "#| hide: true\nx", "x;",
                                                                "%%bash\nls",
                                                                "#| eval: false\nx", "#| export: true\nx", "")])
    assert not without_output([code_page("x", shown("text/plain", "1"))])


# What must not stand in them

FOLDERS = "tmp|home|root|Users|var|scratch|content|data|work|opt|usr"
SPOILED = {"a path of a machine": rf"(?<![\w.:/])/(?:{FOLDERS})/|\b[A-Z]:\\\\?[A-Za-z]",
           "colours of a terminal": r"\x1b\[", "an object that says nothing": r"<__main__\.\w+ object",
           "a progress bar": r"\r(?!\n)|\d+%\|| it/s\b|s/it\b"}


def spoiled(pages: list[Page]) -> list[str]:
    "Stored outputs that are errors, or hold what another run or machine would not show."
    found = []
    for page in pages:
        for where, _, outputs in coded(page):
            found += [f"{where}: the error {out['ename']}" for out in outputs if out["output_type"] == "error"]
            found += [f"{where}: {what}" for what, pattern in SPOILED.items()
                      if any(re.search(pattern, text) for _, text in texts(outputs))]
    return found


def test_no_output_is_spoiled():
    found = spoiled(pages())
    assert not found, "\n".join(found)


def test_spoiled_outputs_are_found():
    for text in ("/tmp/x/run", "in '/home/me/data'", r"C:\Users\me", "\x1b[31mred", "100%|####| 3/3", "0\r1",
                 "<__main__.X object>"):
        assert spoiled([code_page("x", {"output_type": "stream", "name": "stdout", "text": [text]})]), text
    assert spoiled([code_page("x", {"output_type": "error", "ename": "ValueError"})])
    assert not spoiled([code_page("x", shown("text/html", '<img alt="a" src="data:image/png;base64,/tmp/">'),
                                  shown("text/plain", "runs/tmp/home 100 %"))])


# Pictures in words

def unsaid(pages: list[Page]) -> list[str]:
    "Cells with pictures of which `#| fig-alt` does not say, of each, what is on it."
    found = []
    for page in pages:
        for where, source, outputs in coded(page):
            n = sum("image/png" in output.get("data", {}) for output in outputs)
            words = yaml.safe_load(directive(source, "fig-alt") or "") or []
            words = words if isinstance(words, list) else [words]
            short = [one for one in words if len(one) < SHORTEST]
            if len(words) == n and not short: continue
            found.append(f"{where}: {n} pictures, {len(words)} texts, {len(short)} of them too short")
    return found


def test_every_picture_is_said_in_words():
    found = unsaid(pages())
    assert not found, "\n".join(found)


def test_pictures_without_words_are_found():
    png, text = shown("image/png", "iVBO"), "Loss against epoch: it falls."
    assert unsaid([code_page("x", png)]) and unsaid([code_page('#| fig-alt: "A plot"\nx', png)])
    assert unsaid([code_page(f'#| fig-alt: "{text}"\nx', png, png)]) and unsaid([code_page(f'#| fig-alt: "{text}"\nx')])
    assert not unsaid([code_page(f'#| hide: true\n#| fig-alt: "{text}"\nx', png),
                       code_page(f'#| fig-alt: ["{text}", "{text}"]\nx', png, png), code_page("x")])


def nameless_images(pages: list[Page]) -> list[str]:
    "Stored HTML with an image that has no text, or an empty one."
    return [where for page in pages for where, _, outputs in coded(page) for mime, text in texts(outputs)
            if mime == "text/html" and any(not re.search(r"""\balt=(?:"[^"]+"|'[^']+')""", tag)
                                           for tag in re.findall(r"<img\b[^>]*>", text))]


def test_every_image_in_html_has_a_text():
    found = nameless_images(pages())
    assert not found, "\n".join(found)


def test_images_in_html_without_text_are_found():
    for tag in ('<img src="a.png">', '<img alt="" src="a.png">', '<img alt="a"><img src="b.png"/>'):
        assert nameless_images([code_page("x", shown("text/html", tag))])
    assert not nameless_images([code_page("x", shown("text/html", '<img style="a" alt="a cat" src="a.png"/>'))])


# Size

def large(pages: list[Page]) -> list[str]: return [page.name for page in pages if page.size > LARGEST]


def test_no_page_is_large():
    found = large(pages())
    assert not found, "\n".join(found)


def test_large_pages_are_found():
    assert large([Page("page", [], LARGEST + 1), Page("other", [], LARGEST)]) == ["page"]


# Names

def undefined(pages: list[Page]) -> list[str]:
    "Names that the visible code of a page uses, and no visible code defines: who copies it stops there."
    with tempfile.TemporaryDirectory() as folder:
        for page in pages:
            visible = [source for _, source, _ in coded(page) if not is_hidden(source)]
            text = "\n".join(re.sub(r"^([ \t]*)[%!].*$", r"\1pass", source, flags=re.M) for source in visible)
            (Path(folder)/f"{page.name.replace('/', '.')}.py").write_text(text)
        command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F821", "--output-format=concise"]
        said = subprocess.run([*command, folder], capture_output=True, text=True, timeout=60).stdout
    return sorted(set(re.findall(r"([\w.]+)\.py:.* (Undefined name `\w+`)", said)))


def is_hidden(source: str) -> bool:
    "Is a cell not for a reader to copy? A file that a cell writes, or another language, is no Python."
    if re.match(r"\s*(#\|.*\s+)*%%", source): return True
    return directive(source, "hide") is not None or "false" in (directive(source, "echo"), directive(source, "eval"))


def test_every_name_is_defined_where_it_is_seen():
    followed = [page for page in pages() if "/" in page.name and not page.name.startswith("benchmarks/")]
    assert len(followed) > 30 and not undefined(followed)


def test_undefined_names_are_found():
    hidden = {"cell_type": "code", "id": "h", "source": "#| hide: true\nimport os", "outputs": []}
    page = code_page("os.getcwd()")
    assert undefined([Page("tutorials/page", [hidden, *page.cells])]) == [("tutorials.page", "Undefined name `os`")]
    assert not undefined([code_page("%%writefile x\nos.y"), code_page("import os\nos.getcwd()"), code_page("%pip x")])
