"What a person sees and presses in JupyterLab: a real server, a real browser, a real kernel."
import re
from pathlib import Path

import numpy as np
from lab import Lab, Notebook
from PIL import Image

# An epoch takes half a second or more, on the fastest machine too: time to look, and to press a button.
SETUP = """
import time
import torch; torch.set_num_threads(1)
from imgcls import Callback, ImageData, Learner
class Slow(Callback):
    def on_batch_end(self, state): time.sleep(0.035)
data = ImageData.from_folder('data/digits', size=16)
learn = Learner(data, 'tiny_net', batch_size=16, num_epochs={n_epochs}, name='{name}', callbacks=[Slow()])
"""
PARTS = {"rows": "table:has(thead) tbody tr", "bars": "progress", "pictures": "img[alt]"}
EXPLORE = """
from imgcls import explore
val = learn.evaluate('val')
counts = val.confusion_matrix()
import numpy as np
wrong = counts - np.diag(counts.diagonal())
i, j = map(int, np.unravel_index(wrong.argmax(), wrong.shape))
expected = sorted(path.split('/')[-1] for path, t, p in zip(val.paths, val.targets, val.predicted) if (t, p) == (i, j))
explorer = explore(val)
from threading import Timer
def draw_again(): explorer.view.html += '<i></i>'
explorer
"""
PREDICT = """
from imgcls import predict_widget
predict_widget(learn)
"""
FIX = """
from imgcls import fix_labels
fixer = fix_labels(learn.evaluate('val'))
fixer
"""
MENDED = """
from imgcls import Edits
(path, decision), = Edits('runs/shown/edits.csv').decisions.items()
print(path, decision.label)
"""
REOPENED = """
from imgcls import Learner, fix_labels
learn = Learner.from_run('shown', progress='pipe')
fixer = fix_labels(learn.evaluate('val'))
fixer.go(show='decided')
fixer
"""
SESSION = [SETUP.format(n_epochs=6, name="shown"), "learn.fit()", EXPLORE, "print(i, j, *expected)",
           "print(*sorted(path.split('/')[-1] for path in explorer.selection.path))",
           "if explorer.opened is not None: Timer(1, draw_again).start()", PREDICT, FIX, MENDED, REOPENED]


def test_a_session(lab: Lab, tmp_path: Path):
    "One training, and all that is done with it in the same notebook."
    with lab.open(SESSION) as notebook:
        fit_shows_one_output_that_updates_in_place(notebook)
        a_cell_of_the_confusion_matrix_shows_its_images(notebook)
        a_file_of_mine_is_predicted(notebook, tmp_path)
        a_label_edit_survives_a_restart_of_the_kernel(notebook)


def fit_shows_one_output_that_updates_in_place(notebook: Notebook) -> None:
    for cell in (0, 1): notebook.run(cell)
    notebook.wait_for(1, "progress")
    looks = notebook.watch(1, **PARTS)
    live = looks[:[look["bars"] for look in looks].index(0)]        # what follows is the end
    assert all(look["outputs"] == look["bars"] == 1 for look in live), live
    assert not any(look["bars"] for look in looks[len(live):]), looks
    rows = [look["rows"] for look in live]
    assert rows == sorted(rows) and len(set(rows)) >= 3 and max(rows) <= 6, rows
    assert live[-1]["pictures"] == 1

    notebook.save()
    shown, learner = notebook.stored().cells[1].outputs
    assert (shown.output_type, learner.output_type) == ("display_data", "execute_result")
    assert shown.data["text/html"].count("<tr>") == 1 + 6 and "Completed at" in shown.data["text/plain"]
    assert re.search('<img alt="[^"]{20,}"', shown.data["text/html"])
    text = notebook.path.read_text()
    assert "<progress" not in text and len(text) < 300_000


def a_cell_of_the_confusion_matrix_shows_its_images(notebook: Notebook) -> None:
    notebook.run(2)
    notebook.run(3)
    notebook.wait_done(3)
    i, j, *expected = notebook.output_text(3).split()
    assert expected
    notebook.click_part(f"cell {i} {j}")
    n = len(expected)
    notebook.wait("the images of the cell", "n => [...lab.cell(2).querySelectorAll('[data-click^=\"image \"]')]"
                  ".filter(e => e.checkVisibility()).length === n", n)
    shown = notebook.page.locator("[data-click^='image ']").filter(visible=True).all_inner_texts()
    assert sorted(name for text in shown for name in re.findall(r"\S+\.png", text)) == expected
    notebook.run(4)
    notebook.wait_done(4)
    assert notebook.output_text(4).split() == expected
    notebook.page.locator("[data-click^='image ']").filter(visible=True).first.click()
    notebook.wait_for(2, "img[alt]", 2)         # the image, and where the network looked
    notebook.run(5)                             # draws again in a second, when the button is down
    notebook.part("back").hover()
    notebook.page.mouse.down()
    notebook.page.wait_for_timeout(1500)
    notebook.page.mouse.up()
    notebook.click_part("all")


def a_file_of_mine_is_predicted(notebook: Notebook, folder: Path) -> None:
    "Chosen or dropped; what is no image is named, and pushes nothing out."
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (1500, 1500, 3), dtype="uint8")).save(folder/"large.png")   # in two parts
    (folder/"notes.txt").write_text("milk")
    notebook.run(6)
    notebook.wait_done(6)
    chooser = notebook.page.get_by_label("choose files")
    chooser.set_input_files([folder/"large.png", folder/"notes.txt"])
    notebook.wait_text(6, "large.png")
    notebook.wait_text(6, "Cannot read the image 'notes.txt'")
    notebook.part("class 0 3").click()
    notebook.wait_text(6, "speaks for 3")


def a_label_edit_survives_a_restart_of_the_kernel(notebook: Notebook) -> None:
    notebook.run(7)
    notebook.wait_done(7)
    suggestion = notebook.page.locator("[data-click^='suggest ']").filter(visible=True).first
    suggestion.click()
    notebook.wait_text(7, "1 label changed")
    notebook.restart()
    notebook.run(8)                         # the file, read by a kernel that knows nothing of the click
    notebook.wait_done(8)
    path, _ = notebook.output_text(8).split()
    notebook.run(9)                         # and the widget, made again
    notebook.wait_done(9)
    assert "1 label changed" in notebook.output_text(9) and Path(path).name in notebook.output_text(9)


STOPPED = (r"Stopped at (epoch \d of 6, batch \d+ of 14|the end of epoch \d of 6) \(SIGINT\)\. "
           r"Saved to pressed\. learn\.resume\(\) goes on\.")
COMPARE = """
straight = Learner(data, 'tiny_net', batch_size=16, num_epochs=6, name='straight')
def equal():
    ours, theirs = learn.network.state_dict(), straight.network.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
before = equal()
straight.fit()
print('equal before and after:', before, equal(), learn.history.same_as(straight.history))
"""


def test_interrupt_button_drops_the_queue_and_resume_is_exact(lab: Lab):
    cells = [SETUP.format(n_epochs=6, name="pressed"), "learn.fit()", "print('the queued cell ran')",
             "print(learn.state.status)\nlearn.resume()\nprint(learn.state.status)", COMPARE]
    with lab.open(cells) as notebook:
        notebook.run_all()
        notebook.wait_for(1, PARTS["rows"])         # an epoch is over
        notebook.interrupt()
        notebook.wait_done(1)
        progress, stopped = notebook.outputs(1)
        assert "Interrupted at" in progress.inner_text() and progress.locator("progress").count() == 0
        assert re.fullmatch(STOPPED, stopped.inner_text().strip()), stopped.inner_text()
        for queued in (2, 3, 4):
            notebook.wait_done(queued)
            assert notebook.prompt(queued) == "[ ]:" and notebook.output_text(queued) == ""

        notebook.run(3)
        notebook.wait_done(3)
        text = notebook.output_text(3)
        assert text.startswith("interrupted") and text.endswith("completed"), text
        notebook.run(4)
        notebook.wait_done(4)
        assert "equal before and after: False True True" in notebook.output_text(4)
        notebook.save()
        error = notebook.stored().cells[1].outputs[1]
        assert error.output_type == "error" and len(error.traceback) == 1


HANDS = """
import ipywidgets
from imgcls.widgets import Clickable
number = ipywidgets.FloatText(description='how many')
choice = ipywidgets.Dropdown(options=['one', 'two'], description='which')
button, said = ipywidgets.Button(description='Go'), ipywidgets.HTML()
def say(word): said.value = f'{word}: {number.value} {choice.value}'
button.on_click(lambda _: say('button'))
view = Clickable('<b data-click="cell 3 5">here</b> <i hidden data-click="cell 3 5">not here</i>', say)
ipywidgets.VBox([number, choice, button, view, said])
"""


def test_hands_and_eyes(lab: Lab):
    "What the other tests rely on: fields, lists, buttons, parts, a restart; and a mistake of the page is seen."
    with lab.open([HANDS, "'view' in globals()"]) as notebook:
        notebook.run_all()
        notebook.wait_done(1)
        assert notebook.output_text(1) == "True"
        notebook.fill("how many", "2.5")
        notebook.choose("which", "two")
        notebook.click_button("Go")
        notebook.wait_text(0, "button: 2.5 two")
        notebook.click_part("cell 3 5")
        notebook.wait_text(0, "cell 3 5: 2.5 two")
        notebook.restart()
        notebook.run(1)
        notebook.wait_done(1)
        assert notebook.output_text(1) == "False" and notebook.prompt(1) == "[1]:"
        notebook.page.evaluate("console.error('a mistake')")
        assert len(notebook.errors) == 1 and "a mistake" in notebook.errors[0]
        notebook.errors.clear()


PANEL = """
learn = Learner(data, 'tiny_net', lr=0.05, batch_size=16, num_epochs=12, name='panel', callbacks=[Slow()])
learn.fit(background=True)
"""
STEERED = """
from imgcls import Replay
events = learn.history.events
print(learn.state.status, events.event.tolist(), events.text.tolist())
learn.resume()
again = Learner(data, 'tiny_net', lr=0.05, batch_size=16, num_epochs=12, name='again', progress='pipe')
again.fit(callbacks=[Replay(learn.history)])
ours, theirs = learn.network.state_dict(), again.network.state_dict()
print('replayed:', all(torch.equal(ours[key], theirs[key]) for key in ours), again.history.same_as(learn.history))
"""
REFUSED = """
try: learn.fit()
except Exception as error: print(error)
print(learn.evaluate('val'))
"""


def test_panel_steers_a_training_in_the_background(lab: Lab):
    cells = [SETUP.format(n_epochs=1, name="unused"), PANEL, REFUSED, "learn.wait()", STEERED]
    with lab.open(cells) as notebook:
        notebook.run(0)
        notebook.wait_done(0)
        notebook.run(1)
        notebook.wait_done(1)               # at once: it trains in a thread
        notebook.wait_text(1, "best val accuracy")
        notebook.click_button("Pause")
        notebook.wait_text(1, ", paused:")
        at = notebook.output_text(1)
        notebook.fill("learning rate ×", "0.5")
        notebook.wait_text(1, "learning rate × 0.5 from step")
        notebook.fill("learning rate ×", "-1")
        notebook.wait_text(1, "must be a number > 0. Got -1.0")
        notebook.run(2)                     # other cells are usable, and a second fit is refused
        notebook.wait_done(2)
        assert "trains in the background already" in notebook.output_text(2)
        assert "Evaluation (val): 46 images" in notebook.output_text(2)
        paused = re.search(r"epoch \d+ of 12, paused: \d+/14", at)[0]
        assert paused in notebook.output_text(1)        # it has waited all the time
        notebook.click_button("Resume")
        notebook.wait("more training", "text => !lab.texts(1).join().includes(text)", paused)
        notebook.click_button("Stop")
        notebook.wait_text(1, "Changed by hand")
        text = notebook.output_text(1)
        assert re.search(r"step \d+: paused; step \d+: lr factor 0\.5; step \d+: continued; step \d+: stopped",
                         text), text
        assert "Interrupted at" in text and notebook.look(1, buttons="button")["buttons"] == 0
        notebook.run(3)
        notebook.wait_done(3)
        assert re.fullmatch(r"Stopped at .* \(Stop button\)\. Saved to panel\. learn\.resume\(\) goes on\.",
                            notebook.output_text(3)), notebook.output_text(3)
        notebook.run(4)
        notebook.wait_done(4)
        assert "interrupted ['paused', 'lr factor', 'continued', 'stopped'] ['', '0.5', '', 'Stop button']" \
            in notebook.output_text(4)
        assert "replayed: True True" in notebook.output_text(4)
        notebook.save()
        outputs = notebook.stored().cells[1].outputs
        assert all("widget" not in kind for output in outputs for kind in output.data)      # nothing needs a kernel
        assert len(notebook.path.read_text()) < 300_000
