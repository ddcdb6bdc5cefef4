"README.md says what nbs/index.ipynb says."
import re

import nbformat
from readme import ROOT, differences, render


def test_readme_is_the_index():
    assert not differences(), "run: python tests/readme.py"


def test_readme_is_worth_reading():
    text, pictures = render()
    assert text.startswith("# imgcls") and "make train" in text and len(pictures) >= 3
    assert "base64" not in text and "#|" not in text


def test_every_picture_says_what_it_shows():
    text, pictures = render()
    said = re.findall(r"!\[([^]]*)\]\(nbs/images/", text)
    said += [(re.search(r'alt="([^"]*)"', tag) or [""] * 2)[1] for tag in re.findall(r"<img[^>]*>", text)]
    assert len(said) == len(pictures) and all(len(alt) > 20 for alt in said), said


def test_an_alt_text_is_that_of_its_cell():
    notebook = nbformat.read(ROOT/"nbs"/"index.ipynb", 4)
    told = [line.partition(": ")[2].strip('"') for cell in notebook.cells for line in cell.source.splitlines()
            if line.startswith("#| fig-alt:")]
    text = render()[0]
    assert told and [alt for alt in told if f"![{alt}](" not in text] == []


def test_links_lead_from_the_top():
    links = re.findall(r"\]\(([^)]+[.]ipynb)", render()[0])
    assert len(links) > 20 and all(link.startswith("nbs/") for link in links), links
