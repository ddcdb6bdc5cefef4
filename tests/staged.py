"""The site as Quarto gets it: `python tests/staged.py` stages it twice and looks for what a reader would stumble over.

Quarto isn't on every machine, and nbdev would fetch it with sudo: a stand-in that does nothing is found in its place.
"""
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
        subprocess.run([BIN/"nbdev-proc-nbs", "--force"], cwd=ROOT, env=env, check=True, timeout=LIMIT)
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
    def anchors(self) -> set[str]:
        "Places on the page to which a link may lead: headings, and what has an id."
        found = set()
        for text in self.texts:
            found |= set(re.findall(r'\bid="([^"]+)"', text)) | set(re.findall(r"\{#([^\s}]+)[^}]*\}", text))
            found |= {slug(heading) for heading in re.findall(r"^#{1,6} +(.+)$", text, re.M)}
        return found


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
    anchors = {page.name: page.anchors for page in pages}
    found = []
    for page in pages:
        for href in links_of(page):
            path, _, anchor = href.partition("#")
            target = os.path.normpath(PurePosixPath(page.name).parent/path) if path else page.name
            if target not in anchors:
                if target not in files: found.append(f"{page.name}: {href} leads to no page")
            elif anchor and anchor not in anchors[target]: found.append(f"{page.name}: {href} leads to no place there")
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
            for name in re.findall(r"(?<!`)`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
                if is_unknown(name, folders, book): found.append(f"{page.name}: `{name}`")
    return found


def is_unknown(name: str, folders: set[str], book) -> bool:
    from imgcls.pages import find_symbol
    room = re.fullmatch(r"\d\d[a-z]?_\w+", name) or (re.fullmatch(r"\w+/\w+", name) and name.split("/")[0] in folders)
    if room: return name not in book.pages
    part = re.fullmatch(r"([A-Z]\w+)\.([a-z]\w*)(\(.*\))?", name)
    if not part or part[1] not in book.homes or name.endswith(".py"): return False
    module = book.homes[part[1]]
    return find_symbol(book, f"{part[1]}.{part[2]}") is None and part[2] not in attributes(book, module)


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
    problems += dead_links(pages, files) + left_behind(pages) + unknown_names(pages, book)
    print(*problems, f"{len(pages)} pages, {len(problems)} problems", sep="\n")
    return min(len(problems), 1)


if __name__ == "__main__": sys.exit(main())
