"""The site as Quarto gets it: `python tests/staged.py` stages it twice and looks for what a reader would stumble over.

Quarto isn't on every machine, and nbdev would fetch it with sudo: a stand-in that does nothing is found in its place.
"""
import ast
import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
STAGED = ROOT/"_proc"
BIN = Path(sys.executable).parent
LIMIT = 300             # seconds; nothing may hang


def stage() -> dict[str, str]:
    "Stage all pages anew; each file with a hash of what it holds."
    with tempfile.TemporaryDirectory() as folder:
        quarto = Path(folder)/"quarto"
        quarto.write_text("#!/bin/sh\nexit 0\n")
        quarto.chmod(0o755)
        env = dict(os.environ, PATH=os.pathsep.join([folder, str(BIN), os.environ["PATH"]]))
        shutil.rmtree(STAGED, ignore_errors=True)       # --force would also write another sidebar
        subprocess.run([BIN/"nbdev-proc-nbs"], cwd=ROOT, env=env, check=True, timeout=LIMIT)
    return {str(file.relative_to(STAGED)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(STAGED.rglob("*")) if file.is_file()}


@dataclass(frozen=True)
class Staged:
    "A page as Quarto reads it."
    name: str                       # 'tutorials/resume.html'
    cells: tuple[dict, ...]

    @property
    def texts(self) -> Iterator[str]:
        "All Markdown of the page: cells, and outputs of cells; without blocks of code."
        for cell in self.cells:
            if cell["cell_type"] == "markdown": yield without_code("".join(cell["source"]))
            for output in cell.get("outputs", ()):
                markdown = "".join(output.get("data", {}).get("text/markdown", ""))
                yield markdown if markdown.startswith("```{=html}") else without_code(markdown)

    @property
    def anchors(self) -> list[str]:
        "Places on the page to which a link may lead: headings, and what has an id."
        found = []
        for text in self.texts:
            found += re.findall(r'\bid="([^"]+)"', text) + re.findall(r"^#{1,6} .*\{#([^\s}]+)[^}]*\}$", text, re.M)
            found += [slug(heading) for heading in re.findall(r"^#{1,6} +(.+)$", text, re.M) if "{#" not in heading]
        return found

    @property
    def code(self) -> Iterator[str]:
        "The Python that a reader sees."
        for cell in self.cells:
            text = "".join(cell["source"])
            if cell["cell_type"] == "code" and not re.search(r"^\s*[%!]|^#\| *echo: false", text, re.M): yield text


def without_code(text: str) -> str:
    "Markdown without its blocks and pieces of code; raw HTML stays."
    text = re.sub(r"^(`{3,}|~{3,})([^\n]*)\n.*?^\1 *$", lambda m: m[0] if "{=html}" in m[2] else "", text,
                  flags=re.M | re.S)
    return re.sub(r"(?<![\[`])`[^`\n]+`(?!\]|`)", "", text)


def slug(heading: str) -> str:
    "The id that Pandoc gives to a heading."
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"\{[^}]*\}\s*$", "", heading))
    plain = re.sub(r"[^\w\s.-]", "", plain.lower()).strip()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", plain))


def read_page(file: Path, page: str) -> Staged:
    return Staged(page, tuple(json.loads(file.read_text(encoding="utf-8"))["cells"]))


def text_page(file: Path) -> Staged:
    "A page that is no notebook."
    from imgcls.pages import links_to_pages
    text = links_to_pages(file.read_text(encoding="utf-8"))
    return Staged(str(file.relative_to(STAGED).with_suffix(".html")), ({"cell_type": "markdown", "source": text},))


def links_of(page: Staged) -> Iterator[str]:
    "Where a page leads, within the site."
    for text in page.texts:
        for href in re.findall(r"\]\(<?([^)>\s]+)", text) + re.findall(r'\b(?:href|src)="([^"]+)"', text):
            if not re.match(r"\w+:|//", href): yield href


def dead_links(pages: Iterable[Staged], files: set[str]) -> list[str]:
    "Links to a page or a place that doesn't exist. `files`: what else is published."
    pages = list(pages)
    anchors = {page.name: {*page.anchors} for page in pages}
    found = []
    for page in pages:
        for href in links_of(page):
            path, _, anchor = href.partition("#")
            target = os.path.normpath(PurePosixPath(page.name).parent/path) if path else page.name
            if target not in anchors:
                if target not in files: found.append(f"{page.name}: {href} leads to no page")
            elif anchor and anchor not in anchors[target]: found.append(f"{page.name}: {href} leads to no place there")
    return found


def doubled(pages: Iterable[Staged]) -> list[str]:
    "Entries of symbols that share their place with another: a link would lead to the first."
    return [f"{page.name}: two places are called #{place}" for page in pages
            for place in sorted({p for p in page.anchors if page.anchors.count(p) > 1 and re.search("[A-Z.]", p)})]


def no_python(pages: Iterable[Staged]) -> list[str]:
    "Code that a page shows, and that is none: something was cut in the wrong place."
    found = []
    for page in pages:
        for text in page.code:
            try: ast.parse(text)
            except SyntaxError as error: found.append(f"{page.name}: {error.msg}: {text[:80]!r}")
    return found


def left_behind(pages: Iterable[Staged]) -> list[str]:
    "Traces of how a page was made, and what it would load from elsewhere."
    traces = {"__main__.": "a class of nowhere", "show_doc(": "an entry that was not written", "<factory>": "a default",
              "#| export": "a directive", "<iframe": "another page"}
    found = []
    for page in pages:
        for text in page.texts:
            found += [f"{page.name}: {trace}, {what}" for trace, what in traces.items() if trace in text]
            loaded = re.findall(r'<(?:script|link|img|source)\b[^>]*\b(?:src|href)="((?:https?:)?//[^"]+)"', text)
            found += [f"{page.name}: loads {url} from another host" for url in loaded]
        outputs = [output for cell in page.cells for output in cell.get("outputs", ())]
        if any("text/html" in output.get("data", {}) for output in outputs):
            found.append(f"{page.name}: an output of HTML, for which Quarto loads require.js")
    return found


def unknown_names(pages: Iterable[Staged], book) -> list[str]:
    "Names in backticks that look like a room, a page, or a part of a class of ours, and are none."
    folders = {name.split("/")[0] for name in book.pages if "/" in name}
    found = []
    for page in pages:
        if page.name.startswith(("coming_from/", "changelog")): continue    # other libraries' names, and former ones
        for text in ("".join(cell["source"]) for cell in page.cells if cell["cell_type"] == "markdown"):
            names = re.findall(r"(?<!`)`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
            for block in re.findall(r"^```(?!\{)[^\n]*\n(.*?)^```", text, flags=re.M | re.S):
                names += re.findall(r"\bimgcls-\w+", block)
                names += [f"{called}()" for called in re.findall(r"(?<![\w.])(?:\w+\.)*([a-z]\w+)\(", block)]
            found += [f"{page.name}: `{name}`" for name in names if is_unknown(name, folders, book)]
    return found


def is_unknown(name: str, folders: set[str], book) -> bool:
    "Looks it like a room, a page, a command, a part of a class or a function of ours, and is none?"
    from imgcls.pages import find_symbol
    room = re.fullmatch(r"\d\d[a-z]?_\w+", name) or (re.fullmatch(r"\w+/\w+", name) and name.split("/")[0] in folders)
    if room: return name not in book.pages
    command = re.match(r"imgcls-\w+", name)
    if command: return command[0] not in commands() and bool(difflib.get_close_matches(command[0], commands(), 1, 0.9))
    called = re.fullmatch(r"([a-z]\w+)\(.*\)", name, re.S)
    if called: return misspelt(called[1], book)
    part = re.fullmatch(r"([A-Z]\w+)\.([a-z]\w*)(\(.*\))?", name)
    if not part or part[1] not in book.homes or name.endswith(".py"): return False
    module = book.homes[part[1]]
    return find_symbol(book, f"{part[1]}.{part[2]}") is None and part[2] not in attributes(book, module)


@cache
def commands() -> set[str]:
    return {*tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]}


def misspelt(name: str, book) -> bool:
    "Is it nearly, but not quite, the name of a public function or method? Words of other libraries are far from ours."
    known = verbs(book.root)
    return name not in known and bool(difflib.get_close_matches(name, known, 1, 0.92))


@cache
def verbs(root: Path) -> list[str]:
    from imgcls.pages import book_of
    every = {name.split(".")[-1] for symbols in book_of(root).symbols.values() for name in symbols}
    return sorted(name for name in every if len(name) > 5)


def attributes(book, module: str) -> set[str]:
    "Names that objects of a module may have: fields, and what is set on `self`."
    source = (ROOT/book.package/f"{module}.py").read_text(encoding="utf-8")
    fields = {p.name for symbol in book.symbols[module].values() for p in symbol.parameters}
    return fields | set(re.findall(r"\bself\.(\w+)", source)) | set(re.findall(r"^    (\w+)\b *[:=]", source, re.M))


def main() -> int:
    from imgcls.pages import book_of
    first = stage()
    different = sorted(name for name, made in stage().items() if first.get(name) != made)
    book = book_of(ROOT)
    pages = [read_page(STAGED/f"{name}.ipynb", str(page)) for name, page in book.pages.items()]
    pages += [text_page(file) for file in STAGED.rglob("*.qmd")]
    files = {name for name in first if not name.endswith(".ipynb")}
    problems = [f"{name} differs between two stagings" for name in different]
    problems += dead_links(pages, files) + doubled(pages) + no_python(pages)
    problems += left_behind(pages) + unknown_names(pages, book)
    print(*problems, f"{len(pages)} pages, {len(problems)} problems", sep="\n")
    return min(len(problems), 1)


if __name__ == "__main__": sys.exit(main())
