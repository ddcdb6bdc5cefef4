"The page to try a run: a real server, a real browser; and how it ends."
import importlib.util
import io
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import Workspace, output_of
from lab import chromium
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE = 45.0         # seconds until a wait has failed
STRANGE = ["<img src=x onerror=hacked=1>", "{{constructor}}", "${hacked=1}", "ünïcode", "long " * 60]


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    missing = [name for name in ("playwright", "gradio") if importlib.util.find_spec(name) is None]
    why = f"pip install {' '.join(missing)}" if missing else "" if chromium() else "No chromium on the PATH"
    if why and os.environ.get("IMGCLS_NEED_BROWSER") == "1": pytest.fail(why)
    if why: pytest.skip(why)
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright, closing(playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])) as browser:
        yield browser


class Visit:
    "Somebody opens the page. What the browser asks of others, or complains about, is an error."

    def __init__(self, browser: "Browser", address: str):
        self.page: Page = browser.new_page(viewport={"width": 1000, "height": 900})
        self.page.set_default_timeout(PATIENCE * 1000)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(f"page: {error}"))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda one: None if one.url.startswith((address, "data:", "blob:"))
                     else self.errors.append(f"asked for {one.url}"))
        self.page.goto(address, wait_until="domcontentloaded")
        self.page.wait_for_selector("input[type=file]", state="attached")

    def __enter__(self) -> "Visit": return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.page.close()
        if kind is None: assert not self.errors, self.errors

    def drop(self, *files: dict[str, Any]) -> None:
        "As a mouse drops files."
        self.page.evaluate("""files => {
            const carried = new DataTransfer();
            for (const {name, bytes} of files) carried.items.add(new File([new Uint8Array(bytes)], name));
            const zone = document.querySelector('input[type=file]').closest('button');
            for (const kind of ['dragenter', 'dragover', 'drop'])
                zone.dispatchEvent(new DragEvent(kind, {dataTransfer: carried, bubbles: true, cancelable: true}));
        }""", [dict(file, bytes=list(file["bytes"])) for file in files])

    def choose(self, *files: dict[str, Any]) -> None:
        self.page.set_input_files("input[type=file]", [
            {"name": file["name"], "mimeType": "image/png", "buffer": file["bytes"]} for file in files])

    def wait(self, text: str) -> str:
        "Until it can be read among the answers; all that can be read there."
        answers = self.page.locator("#answers")
        answers.get_by_text(text).first.wait_for()
        return answers.inner_text()


def picture(name: str, colour: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return {"name": name, "bytes": buffer.getvalue()}


def asked(names: list[str]) -> Any:
    "A predictor that is sure of red, and of nothing else; its sets hold two classes where it isn't."
    import torch
    from torch import nn

    from imgcls.decisions import Decisions, PredictionSets, Threshold
    from imgcls.predictor import Predictor

    class Redness(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            red, green, _ = images.mean((2, 3)).unbind(1)
            rose, others = torch.full_like(red, 0.4), torch.full_like(red, -2)
            return torch.stack([9 * (red - green), rose, *[others] * (len(names) - 2)], 1)

    to_tensor = lambda image: torch.tensor(list(image.resize((8, 8)).tobytes())).reshape(8, 8, 3).permute(2, 0, 1) / 255
    threshold = Threshold(0.65, 0.9, 0.95, (0.9, 0.98), 0.7, (0.6, 0.8), 100, "val")
    return Predictor(Redness(), to_tensor, names, decisions=Decisions(threshold=threshold,
                                                                      sets=PredictionSets(0.9, 0.1, 100, "val")))


def test_dropped_images_are_answered_in_a_browser(browser: "Browser"):
    from imgcls.demo import serving
    looked = lambda predictor, image: (image.convert("L"), f"what speaks for {image.size}")
    with serving(asked(["red", "rose", "sky"]), port=0, explain=looked, max_images=4, max_megabytes=0.5,
                 title="Is it red?") as address, Visit(browser, address) as visit:
        assert visit.page.title() == "Is it red?"
        text = visit.page.inner_text("body")
        for said in ("It knows 3 classes: 'red', 'rose', 'sky'.", "no temperature was fitted", "Threshold 0.6500",
                     "at most 4 at a time, 0.5 MB each", "sure of nonsense"): assert said in text, said

        visit.drop(picture("mine.png", "red"), {"name": "notes.txt", "bytes": b"buy milk"})
        text = visit.wait("mine.png")
        assert "red, with probability 0.9998" in text and "It may be red. Such sets hold" in text, text
        assert "I'm not sure" not in text
        assert "Cannot read the image 'notes.txt': not an image in a format we read." in text
        assert "what speaks for (40, 30)" in text and visit.page.locator("#answers img").count() == 2
        widths = visit.page.evaluate("[...document.querySelectorAll('#answers img')].map(e => e.naturalWidth)")
        assert widths == [200, 200]                             # they are seen, and not refused

        visit.choose(picture("grey.png", "grey"))
        text = visit.wait("grey.png")
        assert "I'm not sure. The most probable class is rose, with probability 0.5678, and below 0.6500" in text, text
        assert "It may be rose or red. Such sets hold the true class for at least 90 % of images" in text, text
        assert "mine.png" not in text and [line for line in text.splitlines() if line.startswith("0.")] == [
            "0.5678", "0.3806", "0.0515"], text
        visit.choose(*[picture(f"{i}.png", "red") for i in range(5)])
        assert visit.wait("At most 4 images") == "At most 4 images are taken at a time. These are 5: drop fewer."
        visit.choose({"name": "empty.png", "bytes": b""}, dict(picture("half.png", "blue"),
                                                               bytes=picture("", "blue")["bytes"][:-30]))
        text = visit.wait("empty.png")
        assert "'empty.png': the file is empty." in text and "'half.png': the file is cut short" in text, text
        visit.choose({"name": "large.png", "bytes": bytes(600_000)})
        visit.page.get_by_text("exceed the maximum allowed size").wait_for()
        visit.errors.clear()                                    # the browser complains of what it refuses


def test_names_from_outside_change_nothing_on_the_page(browser: "Browser"):
    from imgcls.demo import serving
    looked = lambda predictor, image: (image, "<i>${hacked=1}{{x}}")
    with serving(asked(STRANGE), port=0, explain=looked, title="<b>{{x}}</b>") as address, \
            Visit(browser, address) as visit:
        for name in ("<img src=x onerror=hacked=1>.png", "${hacked=1}`{{x}}.png"):
            visit.choose(picture(name, "grey"))
            text = visit.wait(name)
            assert all(one.strip() in text for one in STRANGE) and "<i>${hacked=1}{{x}}" in text, text
        assert visit.page.inner_text("h1") == "<b>{{x}}</b>"
        assert visit.page.evaluate("typeof hacked") == "undefined"
        assert visit.page.locator("#answers img").count() == 2
        fits = "document.documentElement.scrollWidth <= innerWidth"
        assert visit.page.evaluate(fits)


SERVER = """
import sys, time
sys.path.insert(0, {tests!r})
import socket
asked_for = []
connect, lookup = socket.socket.connect, socket.getaddrinfo
def connecting(self, address): asked_for.append(address); return connect(self, address)
def looking(host, *rest, **more): asked_for.append(host); return lookup(host, *rest, **more)
socket.socket.connect, socket.getaddrinfo = connecting, looking
from test_demo import asked
from imgcls.demo import serve
def slow(predictor, image):
    print("looking", flush=True)
    time.sleep(1)
whom = asked(["red", "rose"])
try:
    serve(whom, port=0, explain=slow)           # until SIGINT
    serve(whom, port=0, explain=slow)           # until SIGTERM or SIGHUP
finally: print("asked for", sorted(set(map(str, asked_for))), flush=True)
"""
# Whatever somebody's shell says of Gradio: nothing is shared, served or told.
WISHES = {"GRADIO_SHARE": "true", "GRADIO_ALLOWED_PATHS": "/", "GRADIO_ANALYTICS_ENABLED": "True",
          "GRADIO_MCP_SERVER": "True", "GRADIO_SSR_MODE": "True", "GRADIO_SERVER_NAME": "0.0.0.0",
          "GRADIO_ROOT_PATH": "/elsewhere", "GRADIO_VIBE_MODE": "1"}


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP])
def test_it_ends_in_seconds_in_the_midst_of_an_answer(ending: signal.Signals, browser: "Browser",
                                                      workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    for name, value in {**WISHES, "TMPDIR": str(workspace.folder)}.items(): monkeypatch.setenv(name, value)
    process = workspace.launch(sys.executable, "-c", SERVER.format(tests=str(Path(__file__).parent)))
    end_in_an_answer(browser, workspace, process, signal.SIGINT)
    while (line := process.stdout.readline()) == "looking\n": pass
    assert line == "The page is closed.\n"
    end_in_an_answer(browser, workspace, process, ending)
    said, errors = output_of(process, 30)
    assert said.replace("looking\n", "") == "asked for ['127.0.0.1']\n", (said, errors)
    assert process.returncode == 128 + ending and not errors, errors
    assert not list(workspace.folder.glob("imgcls-demo-*"))


def end_in_an_answer(browser: "Browser", workspace: Workspace, process: subprocess.Popen, number: int) -> None:
    "A page is open in a browser, another one listens, sixteen images were dropped: until nothing is left of it."
    line = process.stdout.readline()
    assert line.startswith("The page is at http://127.0.0.1:") and line.endswith(" (Ctrl-C ends it).\n"), (
        line, output_of(process))
    address = line.split()[4]
    with Visit(browser, address) as visit, urllib.request.urlopen(f"{address}/gradio_api/heartbeat/abc", timeout=30):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/gradio_api/file=/etc/passwd", timeout=30)
        visit.choose(*[picture(f"{i}.png", "grey") for i in range(16)])
        assert process.stdout.readline() == "looking\n"
        found = list( workspace.folder.glob("imgcls-demo-*"))      # the one before is gone
        assert len(found) == 1, [*map(str, workspace.folder.rglob("*"))]
        folder = found[0]
        assert len(list(folder.glob("*/*.png"))) == 16
        begin = time.monotonic()
        process.send_signal(number)
        while folder.exists():
            assert time.monotonic() - begin < 10        # alone one or two, more where the machine is busy
            time.sleep(0.05)
        visit.page.close()
        visit.errors.clear()                # it has lost its server
