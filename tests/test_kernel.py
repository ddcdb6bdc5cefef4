"The interrupt button in a real Jupyter kernel: one line, queued cells do not run, and resume goes on."
import os
import re
import time
from collections.abc import Iterator

import pytest
from conftest import few_digits

jupyter_client = pytest.importorskip("jupyter_client")

SETUP = """
import torch; torch.set_num_threads(1)
from imgcls import ImageData, Learner
data = ImageData.from_folder('data/digits', size=16)
learn = Learner(data, 'tiny_net', num_epochs=60, num_workers={workers}, name='{name}')
"""


def run(client, code: str, interrupt=None) -> tuple[str, list[dict]]:
    "Execute a cell; its status, and what it showed."
    asked = client.execute(code)
    mine = lambda message: message["parent_header"].get("msg_id") == asked      # a busy kernel answers others late
    if interrupt: interrupt()
    shown = []
    while True:
        message = client.get_iopub_msg(timeout=120)
        kind, content = message["msg_type"], message["content"]
        if kind in ("display_data", "update_display_data", "execute_result", "error", "stream"):
            shown.append({"kind": kind, **content})
        if kind == "status" and content["execution_state"] == "idle" and mine(message): break
    while not mine(reply := client.get_shell_msg(timeout=120)): pass
    return reply["content"]["status"], shown


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> Iterator[tuple]:
    "One for all tests: the workspace, and who manages and asks the kernel."
    folder = tmp_path_factory.mktemp("kernel")
    (folder/"settings.ini").write_text("[imgcls]\n")
    few_digits(folder)
    notebook = folder/"mine.ipynb"
    notebook.write_text('{"cells": [{"cell_type": "code", "source": "learn.fit()", "outputs": ["a picture"]}]}')
    told = {**os.environ, "JPY_SESSION_NAME": str(notebook)}        # as Jupyter's server does
    manager, client = jupyter_client.manager.start_new_kernel(cwd=str(folder), env=told)
    yield folder, manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("workers", [2, 0])         # with workers first: while no other thread is there, they are forks
def test_interrupt_button(kernel, workers: int):
    folder, manager, client = kernel
    name = f"button{workers}"
    assert run(client, SETUP.format(workers=workers, name=name))[0] == "ok"

    def press() -> None:
        while not any("\n1," in f.read_text() for f in folder.glob(f"runs/{name}/history.csv")): time.sleep(0.1)
        time.sleep(0.2)             # somewhere in a later epoch
        manager.interrupt_kernel()

    status, shown = run(client, "learn.fit()", press)
    assert status == "error"
    trace = next(s for s in shown if s["kind"] == "error")["traceback"]
    assert len(trace) == 1
    assert re.fullmatch(r"Stopped at epoch \d+ of 60, batch \d+ of 7 \(SIGINT\)\. Saved to button\d\. "
                        r"learn\.resume\(\) goes on\.|Stopped at the end of .*", trace[0]), trace
    outputs = {s["transient"]["display_id"] for s in shown if s["kind"].endswith("display_data")}
    assert len(outputs) == 1            # one output, updated in place
    last = [s for s in shown if s["kind"].endswith("display_data")][-1]["data"]
    assert "Interrupted at" in last["text/plain"] and "<img alt=" in last["text/html"]
    assert run(client, "assert learn.state.status == 'interrupted', learn.state.status")[0] == "ok"
    code = folder/"runs"/name/"code"                   # the notebook, and the cells that were run
    assert "a picture" not in (code/"mine.ipynb").read_text()
    cells = (code/"cells.py").read_text()
    assert all(text in cells for text in ("# %% [1]", "ImageData.from_folder", f"name='{name}'", "learn.fit()")), cells
    status, shown = run(client, "learn.plan(learn.state.epoch + 2).resume(); "
                                "assert learn.state.status == 'completed'")
    assert status == "ok", shown


def test_a_table_says_how_the_background_ended(kernel):
    "What `fit(background=True)` has shown is changed in place when the training is stopped."
    client = kernel[2]
    assert run(client, SETUP.format(workers=0, name="table"))[0] == "ok"
    shown = run(client, "learn.fit(background=True)")[1]
    table, = (s for s in shown if "in the background" in s.get("data", {}).get("text/html", ""))
    shown = run(client, "learn.control.stop()\ntry: learn.wait()\nexcept KeyboardInterrupt: pass")[1]
    changed = [s["data"]["text/html"] for s in shown if s["kind"] == "update_display_data"
               and s["transient"]["display_id"] == table["transient"]["display_id"]]
    assert len(changed) == 1 and "in the background" not in changed[0]
    assert re.search(r"\(interrupted at .*; learn\.resume\(\) goes on<", changed[0]), changed[0]
    shown = run(client, "learn")[1]             # at rest it is an ordinary table again
    assert [s["kind"] for s in shown] == ["execute_result"]
