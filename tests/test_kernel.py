"The interrupt button in a real Jupyter kernel: one line, queued cells do not run, and resume goes on."
import os
import re
import time
from pathlib import Path

import pytest

jupyter_client = pytest.importorskip("jupyter_client")

SETUP = """
import torch; torch.set_num_threads(1)
from imgcls import Learner, sample_digits
learn = Learner(sample_digits(size=16), 'tiny_net', num_epochs=40, num_workers={workers}, name='button{workers}')
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


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupt_button(tmp_path: Path, workers: int):
    (tmp_path/"settings.ini").write_text("[imgcls]\n")
    notebook = tmp_path/"mine.ipynb"
    notebook.write_text('{"cells": [{"cell_type": "code", "source": "learn.fit()", "outputs": ["a picture"]}]}')
    told = {**os.environ, "JPY_SESSION_NAME": str(notebook)}        # as Jupyter's server does
    manager, client = jupyter_client.manager.start_new_kernel(cwd=str(tmp_path), env=told)
    try:
        assert run(client, SETUP.format(workers=workers))[0] == "ok"

        def press() -> None:
            while not any("\n1," in f.read_text() for f in tmp_path.glob("runs/*/history.csv")): time.sleep(0.1)
            time.sleep(0.2)             # somewhere in a later epoch
            manager.interrupt_kernel()

        status, shown = run(client, "learn.fit()", press)
        assert status == "error"
        trace = next(s for s in shown if s["kind"] == "error")["traceback"]
        assert len(trace) == 1
        assert re.fullmatch(r"Stopped at epoch \d+ of 40, batch \d+ of 40 \(SIGINT\)\. Saved to button\d\. "
                            r"learn\.resume\(\) goes on\.|Stopped at the end of .*", trace[0]), trace
        outputs = {s["transient"]["display_id"] for s in shown if s["kind"].endswith("display_data")}
        assert len(outputs) == 1            # one output, updated in place
        last = [s for s in shown if s["kind"].endswith("display_data")][-1]["data"]
        assert "Interrupted at" in last["text/plain"] and "<img alt=" in last["text/html"]
        assert run(client, "assert learn.state.status == 'interrupted', learn.state.status")[0] == "ok"
        code = next(tmp_path.glob("runs/*/code"))                   # the notebook, and the cells that were run
        assert "a picture" not in (code/"mine.ipynb").read_text()
        cells = (code/"cells.py").read_text()
        assert all(text in cells for text in ("# %% [1]", "sample_digits(size=16)", "learn.fit()")), cells
        status, shown = run(client, "learn.plan(learn.state.epoch + 2).resume(); "
                                    "assert learn.state.status == 'completed'")
        assert status == "ok", shown
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_table_says_how_the_background_ended(tmp_path: Path):
    "What `fit(background=True)` has shown is changed in place when the training is stopped."
    (tmp_path/"settings.ini").write_text("[imgcls]\n")
    manager, client = jupyter_client.manager.start_new_kernel(cwd=str(tmp_path))
    try:
        assert run(client, SETUP.format(workers=0))[0] == "ok"
        shown = run(client, "learn.fit(background=True)")[1]
        table, = (s for s in shown if "in the background" in s.get("data", {}).get("text/html", ""))
        shown = run(client, "learn.control.stop()\ntry: learn.wait()\nexcept KeyboardInterrupt: pass")[1]
        changed = [s["data"]["text/html"] for s in shown if s["kind"] == "update_display_data"
                   and s["transient"]["display_id"] == table["transient"]["display_id"]]
        assert len(changed) == 1 and "in the background" not in changed[0]
        assert re.search(r"\(interrupted at .*; learn\.resume\(\) goes on<", changed[0]), changed[0]
        shown = run(client, "learn")[1]             # at rest it is an ordinary table again
        assert [s["kind"] for s in shown] == ["execute_result"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
