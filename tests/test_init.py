"From a folder of images to a trained run by two commands; and folders that no first config should stumble over."
import sys
from pathlib import Path

import numpy as np
from conftest import Workspace, output_of
from PIL import Image

from imgcls import Learner, load_experiment
from imgcls.beginning import suggest

INIT = "import sys; from imgcls.init_command import init_command; sys.exit(init_command())"


def pictures(folder: Path, sizes: list[tuple[int, int]], mode: str = "RGB", **counts: int) -> Path:
    "Noise in class folders, of these sizes in turn."
    rng = np.random.default_rng(0)
    for name, n in counts.items():
        (folder/name).mkdir(parents=True)
        for i in range(n):
            width, height = sizes[i % len(sizes)]
            pixels = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder/name/f"{i}.png")
    return folder


def test_two_commands_train(workspace: Workspace):
    "imgcls-init, then imgcls-train of what it wrote; bad input is a line and an exit code, and writes nothing."
    pictures(workspace.folder/"data"/"two words", [(20, 16)], cats=9, dogs=9)
    (workspace.folder/"data"/"two words"/"cats"/"notes.txt").write_text("")
    started = workspace.launch(sys.executable, "-c", INIT, "data/two words")
    printed, said = output_of(started)
    assert (started.returncode, printed) == (0, ""), said
    assert "18 images of 2 classes" in said and "1 files were passed over" in said, said
    assert "imgcls-train --config config.yaml" in said, said
    written = (workspace.folder/"config.yaml").read_text()
    assert "data_dir: two words" in written         # in the workspace's data folder: by its name

    workspace.run("--config", "config.yaml", "--num_epochs", "1", "--trackers", "[]")
    run, = (workspace.folder/"runs").iterdir()
    assert "status: completed" in " ".join((run/"summary.txt").read_text().split())
    assert "n_classes:   2" in (run/"data.yaml").read_text()

    again = workspace.launch(sys.executable, "-c", INIT, "nowhere", "-f", fresh=True)
    printed, said = output_of(again)
    assert (again.returncode, printed) == (1, "") and "There is no folder 'nowhere'" in said, said
    assert "Traceback" not in said and (workspace.folder/"config.yaml").read_text() == written


def test_odd_folders_train(tmp_path: Path, monkeypatch):
    "What is suggested can be trained, whatever the images are like: an epoch, with a smaller network."
    (tmp_path/"settings.ini").write_text("[imgcls]\n")
    monkeypatch.chdir(tmp_path)
    many = {f"class {i}": 3 for i in range(60)}
    folders = {
        "tiny": pictures(tmp_path/"tiny", [(1, 1), (2, 3)], a=5, b=5),
        "long": pictures(tmp_path/"long", [(300, 20), (20, 300)], cat=4, dog=4),
        "mixed": pictures(tmp_path/"mixed", [(600, 400), (10, 10)], cat=2, dog=2),
        "single": pictures(tmp_path/"single", [(40, 40)], cat=1, dog=1),
        "grey": pictures(tmp_path/"grey", [(40, 40)], "L", cat=40, dog=3),
        "many": pictures(tmp_path/"many", [(8, 8)], **many)}
    for name, folder in folders.items():
        suggestion = suggest(folder)
        written = suggestion.save(f"{name}.yaml")
        assert load_experiment(written)[0] == suggestion.config, name
        small = {"training.num_epochs": 1, "model.architecture": "tiny_net", "training.trackers": []}
        learn = Learner.from_config(written, own={"progress": "pipe", "name": name}, **small)
        assert learn.data.sizes == suggestion.found.images, name
        learn.fit()
        assert learn.state.epoch == 1, name
