"""A real JupyterLab in a real Chromium, for what only a person at a screen can try.

    with Lab(folder) as lab, lab.open(["x = 1", "x + 1"]) as notebook:
        notebook.run_all()
        notebook.wait_done(1)
        assert notebook.output_text(1) == "2"

Clicks and keys are a person's; waits are for conditions, never for a time. A cell's number is its place,
from 0. Where a test fails, the message says what the cells showed and where a picture of the page is.
`IMGCLS_KERNEL_PYTHON=/some/venv/bin/python` runs the kernels with another Python (another ipykernel, say).
"""
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from conftest import few_digits
from nbformat.v4 import new_code_cell, new_notebook

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

PATIENCE = 120.0        # seconds until a wait has failed: a busy machine is slow, a broken page never comes
SETTINGS = {            # of JupyterLab's extensions: nothing pops up, nothing is saved behind our back
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "apputils-extension/kernels-settings": {"kernelInfoTimeout": 60_000},       # 3 s are short on a busy machine
    "docmanager-extension/plugin": {"autosave": False},
    "notebook-extension/tracker": {"windowingMode": "none"},    # all cells are in the page, seen or not
}
# Said in the console whatever the notebook does; an entry needs its reason.
NOISE: dict[str, str] = {}      # regular expression: reason
SERVER = """
import os, signal, sys, threading
def end_with_parent():
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end_with_parent, daemon=True).start()
from jupyterlab.labapp import main
main()
"""                     # it ends even when the tests are killed: then its standard input ends
OUTPUT = ".jp-OutputArea-output"
SCRIPT = """
window.lab = {
  panel: () => window.jupyterapp?.shell?.currentWidget,
  cell: i => document.querySelectorAll('.jp-Notebook .jp-CodeCell')[i],
  prompt: i => lab.cell(i).querySelector('.jp-InputPrompt').textContent,
  texts: i => [...lab.cell(i).querySelectorAll('.jp-OutputArea-output')].map(e => e.innerText),
  failed: i => lab.prompt(i) === '[ ]:' ? 'was dropped, a cell before it failed' : !lab.prompt(i).includes('*')
    && lab.panel().content.widgets[i].model.outputs.toJSON().some(e => e.output_type === 'error') && 'failed',
  idle: () => lab.panel()?.sessionContext?.session?.kernel?.status === 'idle',
  ready: path => lab.panel()?.context?.path === path && lab.panel().context.isReady
    && lab.panel().sessionContext.isReady && lab.idle(),
  starts: i => Number(lab.cell(i).dataset.starts ?? 0),
  watch: () => {                                    // counts what is over too soon to be seen
    lab.restarts = lab.saves = 0;
    lab.panel().sessionContext.statusChanged.connect((_, status) => { lab.restarts += status === 'restarting'; });
    lab.panel().context.saveState.connect((_, state) => { lab.saves += state.startsWith('completed'); });
    new MutationObserver(records => {
      const prompts = new Set(records.map(r => (r.target.closest ? r.target : r.target.parentElement)
                                               ?.closest('.jp-InputPrompt')));
      for (const prompt of prompts)
        if (prompt?.textContent.includes('*')) {
          const cell = prompt.closest('.jp-CodeCell');
          cell.dataset.starts = Number(cell.dataset.starts ?? 0) + 1;
        }
    }).observe(lab.panel().node, {subtree: true, childList: true, characterData: true});
  },
};
"""


def chromium() -> str | None:
    "Where a browser is."
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def missing() -> str | None:        # None: nothing
    "What these tests need and is not here."
    modules = [name for name in ("playwright", "jupyterlab") if importlib.util.find_spec(name) is None]
    if modules: return f"pip install {' '.join(modules)}: the tests in JupyterLab need it"
    return None if chromium() else "No chromium, chromium-browser or google-chrome on the PATH: the tests in " \
                                   "JupyterLab need one (apt-get install chromium)"


class Lab:
    "A JupyterLab server and a browser, private, in a folder; both end with the `with` block."

    def __init__(self, folder: Path):
        self.folder, self.root = folder, folder/"workspace"
        self.log, self._count = folder/"server.log", 0
        self.root.mkdir(parents=True)
        (self.root/"settings.ini").write_text("[imgcls]\n")
        few_digits(self.root)
        for plugin, values in SETTINGS.items():
            file = folder/f"settings/@jupyterlab/{plugin}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        python = os.environ.get("IMGCLS_KERNEL_PYTHON", sys.executable)
        kernel = {"argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python",
                  "display_name": "imgcls", "env": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}}
        (folder/"data/kernels/imgcls").mkdir(parents=True)
        (folder/"data/kernels/imgcls/kernel.json").write_text(json.dumps(kernel))

    def __enter__(self) -> "Lab":
        with ExitStack() as stack:
            stack.callback(self._stop_kernels)
            self._start_server(stack)
            from playwright.sync_api import sync_playwright
            playwright = stack.enter_context(sync_playwright())
            self.browser = playwright.chromium.launch(
                executable_path=chromium(), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            stack.callback(self.browser.close)
            self.context = self.browser.new_context(viewport={"width": 1200, "height": 1000})
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: Any) -> None: self._stack.close()

    def open(self, cells: list[str]) -> "Notebook":
        "A new notebook of code cells, open and idle."
        self._count += 1
        path = self.root/f"notebook_{self._count}.ipynb"
        kernel = {"kernelspec": {"name": "imgcls", "display_name": "imgcls", "language": "python"}}
        nbformat.write(new_notebook(cells=[new_code_cell(code) for code in cells], metadata=kernel), path)
        return Notebook(self, path)

    def ask(self, method: str, path: str) -> Any:
        "The server's REST API."
        request = urllib.request.Request(self.url + path, method=method,
                                         headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=60) as answer: return json.loads(answer.read() or "null")

    def _start_server(self, stack: ExitStack) -> None:
        names = ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
                 "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
        folders = ("home", "config", "data", "runtime", "settings", "workspaces", "ipython")
        env = {key: value for key, value in os.environ.items() if not key.startswith(("JUPYTER", "IPYTHON", "XDG_"))}
        env |= {name: str(self.folder/folder) for name, folder in zip(names, folders, strict=True)}
        command = [sys.executable, "-c", SERVER, "--no-browser", "--ip=127.0.0.1", "--allow-root",
                   f"--ServerApp.root_dir={self.root}", "--LabApp.expose_app_in_browser=True",
                   "--LabApp.extension_manager=readonly"]       # the other one asks PyPI
        log = stack.enter_context(self.log.open("w"))
        self.server = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=log, stderr=log,
                                       start_new_session=True)
        stack.callback(self._stop_server)
        end = time.monotonic() + PATIENCE
        while True:
            try:        # the server writes where it is
                info = json.loads(next((self.folder/"runtime").glob("jpserver-*.json")).read_text())
                self.url, self.token = info["url"], info["token"]
                self.ask("GET", "api/status")
                return
            except (StopIteration, json.JSONDecodeError, OSError):
                if self.server.poll() is not None or time.monotonic() > end:
                    raise AssertionError(f"JupyterLab did not start:\n{self._log_end()}") from None
                time.sleep(0.1)

    def _log_end(self) -> str: return "\n".join(self.log.read_text().splitlines()[-20:])

    def _stop_server(self) -> None:
        self.server.terminate()         # it ends its kernels first
        try: self.server.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()

    def _stop_kernels(self) -> None:
        "None is left, but if one is: it ends here, and that is an error."
        end = time.monotonic() + 10
        while (left := self._kernels()) and time.monotonic() < end: time.sleep(0.1)
        for pid in left: os.kill(pid, signal.SIGKILL)
        assert not left, f"kernels outlived their server: {left}"

    def _kernels(self) -> list[int]:
        "Processes with one of our connection files in their command: kernels and their workers."
        return [int(file.parent.name) for file in Path("/proc").glob("[0-9]*/cmdline")
                if str(self.folder/"runtime").encode() in _content(file)]


def _content(file: Path) -> bytes:
    try: return file.read_bytes()
    except OSError: return b""          # it has just ended


class Notebook:
    "A notebook in a page of its own. Left without an error, the page must have told of none either."

    def __init__(self, lab: Lab, path: Path):
        self.lab, self.path = lab, path
        self.errors: list[str] = []         # of the page and its console
        self._starts: dict[int, int] = {}   # how often a cell had been started before its last run
        self.page: Page = lab.context.new_page()
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.on("pageerror", lambda error: self._add_error(f"page: {error.stack or error}"))
        self.page.on("console", lambda message: self._add_error(
            f"console: {message.text} ({message.location.get('url')})") if message.type == "error" else None)
        self.page.add_init_script(SCRIPT)
        try:
            self.page.goto(f"{lab.url}lab/tree/{path.name}?token={lab.token}&reset", wait_until="domcontentloaded")
            self.wait("a notebook with an idle kernel", "path => lab.ready(path)", path.name)
            self.page.evaluate("lab.watch()")
        except BaseException as error:
            self.__exit__(type(error), error)
            raise

    def __enter__(self) -> "Notebook": return self

    def __exit__(self, kind: Any, error: BaseException | None, *_: Any) -> None:
        try:
            if error is not None: error.add_note(self._story())
            else: self._wait_settled()
        finally: self.close()
        if error is None: assert not self.errors, "\n".join(self.errors)

    def close(self) -> None:
        "Close the page and end the kernel."
        self.page.close()
        for session in self.lab.ask("GET", "api/sessions"):
            if session["path"] == self.path.name: self.lab.ask("DELETE", f"api/sessions/{session['id']}")

    # what a person does

    def run(self, i: int) -> None:
        "Run a cell with Shift+Enter. It is running or over when this returns; see `wait_done`."
        self._note_starts([i])
        self._cell(i).locator(".jp-InputArea-editor .cm-content").click()
        self.page.keyboard.press("Shift+Enter")
        self._wait_started(i)

    def run_all(self) -> None:
        "Menu Run, Run All Cells: the first runs, the others are queued."
        self._note_starts(range(self._cells.count()))
        self._menu("Run", "Run All Cells")
        self._wait_started(0)

    def interrupt(self) -> None:
        "The button with the black square."
        self.page.click('.jp-NotebookPanel-toolbar [data-command="notebook:interrupt-kernel"]')

    def restart(self) -> None:
        "Menu Kernel, Restart Kernel, and yes. Outputs stay."
        before = self.page.evaluate("lab.restarts")
        self._menu("Kernel", "Restart Kernel…")
        self.page.click(".jp-Dialog button.jp-mod-accept")
        self.wait("a restarted kernel", "before => lab.restarts > before && lab.idle()", before)

    def save(self) -> None:
        "Ctrl+S."
        before = self.page.evaluate("lab.saves")
        self.page.keyboard.press("Control+s")
        self.wait("a saved notebook", "before => lab.saves > before", before)

    def click_button(self, text: str) -> None:
        "A button in an output, by its whole text."
        self.page.locator(OUTPUT).get_by_role("button", name=text, exact=True).click()

    def click_part(self, part: str) -> None:
        "What is seen of an output and has this `data-click`: there must be one such part."
        self.part(part).click()

    def fill(self, label: str, text: str) -> None:
        "Write into the field of an output that has this label, and press Enter."
        field = self.page.locator(OUTPUT).get_by_label(label, exact=True)
        field.fill(text)
        field.press("Enter")

    def choose(self, label: str, option: str) -> None:
        "Take an option of the drop-down list of an output that has this label."
        self.page.locator(OUTPUT).get_by_label(label, exact=True).select_option(option)

    # what a person sees

    def outputs(self, i: int) -> "list[Locator]":
        "A cell's outputs."
        return self._cell(i).locator(OUTPUT).all()

    def output_text(self, i: int) -> str:
        "What can be read in a cell's outputs."
        return "\n".join(self.page.evaluate("i => lab.texts(i)", i)).strip()

    def prompt(self, i: int) -> str:
        "[1]: when a cell has run, [*]: while it runs or waits, [ ]: when it did not run."
        return self.page.evaluate("i => lab.prompt(i)", i)

    def part(self, part: str) -> "Locator":
        "What is seen of an output and has this `data-click`."
        return self.page.locator(f"{OUTPUT} [data-click={json.dumps(part)}]").filter(visible=True)

    def look(self, i: int, **selectors: str) -> dict[str, int]:
        "At one moment: is the cell running, how many outputs has it, and how many elements of each kind are in them?"
        return self.page.evaluate("""([i, output, selectors]) => {
            const outputs = [...lab.cell(i).querySelectorAll(output)];
            const count = css => outputs.reduce((n, e) => n + e.querySelectorAll(css).length, 0);
            return {running: Number(lab.prompt(i).includes('*')), outputs: outputs.length,
                    ...Object.fromEntries(Object.entries(selectors).map(([name, css]) => [name, count(css)]))};
        }""", [i, OUTPUT, selectors])

    def watch(
        self,
        i: int,
        until: Callable[[dict[str, int]], bool] = lambda now: not now["running"],   # takes a `look`
        seconds: float = PATIENCE,
        **selectors: str,
    ) -> list[dict[str, int]]:
        "Look ten times a second; all looks, the one that ended it last."
        looks, end = [self.look(i, **selectors)], time.monotonic() + seconds
        while not until(looks[-1]):
            assert time.monotonic() < end, f"Watched cell {i} for {seconds:g} s, the last look is {looks[-1]}"
            self.page.wait_for_timeout(100)
            looks.append(self.look(i, **selectors))
        return looks

    def stored(self) -> nbformat.NotebookNode:
        "The file."
        return nbformat.read(self.path, as_version=4)

    def screenshot(self, path: str | Path) -> None:
        "A picture of the page."
        self.page.screenshot(path=path)

    # waiting

    def wait(self, what: str, condition: str, argument: Any = None, seconds: float = PATIENCE) -> Any:
        "Until a JavaScript function of the argument says something true; what it says."
        from playwright.sync_api import TimeoutError as Late
        try: said = self.page.wait_for_function(condition, arg=argument, timeout=seconds * 1000, polling=100)
        except Late: raise AssertionError(f"Waited {seconds:g} s for {what}, and it did not come") from None
        return said.json_value()

    def wait_done(self, i: int, seconds: float = PATIENCE) -> None:
        "Until a cell that `run` or `run_all` started is over, whether it ran, failed or was dropped."
        self.wait(f"the end of cell {i}", "([i, before]) => lab.starts(i) > before && !lab.prompt(i).includes('*')",
                  [i, self._starts[i]], seconds)

    def wait_text(self, i: int, text: str, seconds: float = PATIENCE) -> None:
        "Until a text is in a cell's outputs."
        self._wait_output(i, repr(text), "([i, text]) => lab.texts(i).join('\\n').includes(text)", text, seconds)

    def wait_for(self, i: int, selector: str, n: int = 1, seconds: float = PATIENCE) -> None:
        "Until a cell's outputs hold at least so many elements of a kind."
        self._wait_output(i, f"{n} x {selector}", "([i, [css, n]]) => lab.cell(i).querySelectorAll(css).length >= n",
                          [f"{OUTPUT} {selector}", n], seconds)

    # the rest

    def _wait_output(self, i: int, what: str, condition: str, argument: Any, seconds: float) -> None:
        what, before = f"{what} in the outputs of cell {i}", self._starts.get(i)
        said = self.wait(what, f"""([i, argument, before]) =>
            ({condition})([i, argument]) ? 'here' : before !== null && lab.starts(i) > before && lab.failed(i)""",
                         [i, argument, before], seconds)
        assert said == "here", f"No {what}: it {said}"

    @property
    def _cells(self) -> "Locator": return self.page.locator(".jp-Notebook .jp-CodeCell")

    def _cell(self, i: int) -> "Locator": return self._cells.nth(i)

    def _note_starts(self, cells: Iterable[int]) -> None:
        self._starts |= {i: self.page.evaluate("i => lab.starts(i)", i) for i in cells}

    def _wait_started(self, i: int) -> None:
        self.wait(f"the start of cell {i}", "([i, before]) => lab.starts(i) > before", [i, self._starts[i]])

    def _wait_settled(self) -> None:
        "Until pictures have come or failed, and the page has been drawn."
        self.wait("the pictures", "() => [...document.images].every(e => e.complete || e.loading === 'lazy')")
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")

    def _menu(self, menu: str, entry: str) -> None:
        self.page.click(f'.lm-MenuBar-itemLabel:text-is("{menu}")')
        self.page.click(f'.lm-Menu-itemLabel:text-is("{entry}")')

    def _add_error(self, text: str) -> None:
        if not any(re.search(noise, text) for noise in NOISE): self.errors.append(text)

    def _story(self) -> str:
        "What there was to see, for the message of a failed test."
        lines = []
        try:
            picture = self.lab.folder/f"{self.path.stem}.png"
            self.screenshot(picture)
            lines.append(f"The page: {picture}")
            for i in range(self._cells.count()):
                lines.append(f"cell {i} {self.prompt(i)} {self.output_text(i)[-1500:]}")
        except Exception as error: lines.append(f"The page tells no more: {error}")
        return "\n".join([*lines, *self.errors[-10:], f"The server's log: {self.lab.log}"])
