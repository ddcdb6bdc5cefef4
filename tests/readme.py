"""README.md is nbs/index.ipynb as Markdown: `python tests/readme.py` writes it, a test compares it.

Quarto would do this too (nbdev-readme), but it is not on every machine.
"""
import base64
import re
import sys
from pathlib import Path

import nbformat
import yaml
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT/"nbs"/"images"         # the pictures of README.md
DIRECTIVE = re.compile(r"^#\|.*\n?", re.MULTILINE)
ALT = re.compile(r"^#\| fig-alt: (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:|#)([^)]+[.]ipynb)")     # to a page of the site


def _alt_texts(source: str) -> list[str]:
    "Of a cell's pictures: one text, or a list of them."
    found = ALT.search(source)
    if found is None: return []
    texts = yaml.safe_load(found[1])
    return [texts] if isinstance(texts, str) else texts


def render() -> tuple[str, dict[str, bytes]]:
    "The text, and its pictures by name."
    notebook = nbformat.read(ROOT/"nbs"/"index.ipynb", 4)
    notebook.cells = [cell for cell in notebook.cells if "#| hide: true" not in cell.source]
    notebook.metadata.language_info = {"name": "python"}
    alts = [_alt_texts(cell.source) for cell in notebook.cells]
    for cell in notebook.cells: cell.source = DIRECTIVE.sub("", cell.source)
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    pictures: dict[str, bytes] = {}

    def keep(data: bytes) -> str:
        name = f"readme_{len(pictures) + 1}.png"
        pictures[name] = data
        return f"nbs/images/{name}"

    outputs = resources.get("outputs", {})
    def described(match: re.Match) -> str:
        "A picture, with what its cell says that it shows."
        cell = int(re.fullmatch(r"output_(\d+)_\d+[.]png", match[1])[1])
        return f"![{alts[cell].pop(0) if alts[cell] else ''}]({keep(outputs[match[1]])})"

    text = re.sub(r"!\[png\]\(([^)]+)\)", described, text)
    text = LINK.sub(r"](nbs/\1", text)
    text = re.sub(r'src="data:image/png;base64,([^"]+)"',
                  lambda m: f'src="{keep(base64.b64decode(m[1]))}"', text)
    text = re.sub(r"<style.*?</style>\n?", "", text, flags=re.DOTALL)
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE))
    return text.strip() + "\n", pictures


def differences() -> list[str]:
    "The files that are not what the notebook says."
    text, pictures = render()
    wanted = {ROOT/"README.md": text.encode()} | {FILES/name: data for name, data in pictures.items()}
    extra = [f for f in FILES.glob("readme_*.png") if f not in wanted]
    return [str(f.relative_to(ROOT)) for f, data in wanted.items()
            if not f.exists() or f.read_bytes() != data] + [str(f.relative_to(ROOT)) for f in extra]


def write() -> None:
    "Make README.md and its pictures anew."
    text, pictures = render()
    for old in FILES.glob("readme_*.png"): old.unlink()
    FILES.mkdir(exist_ok=True)
    for name, data in pictures.items(): (FILES/name).write_bytes(data)
    (ROOT/"README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if "--check" in sys.argv: sys.exit("\n".join(differences()) and f"run python tests/readme.py: {differences()}")
    write()
