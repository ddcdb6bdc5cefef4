"""How images are loaded changes nothing: workers, caches, batches at a time, a resume between, a file that changes.

Every run here is the same run, with augmentation and mixup; what differs is how its images come.
"""
import os
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from test_resume import finish, start

from imgcls import ImageData, Learner, TrainingInterrupted, cache, loaders
from imgcls.checkpointing import first_difference
from imgcls.training import Callback
from imgcls.verification import outcome

AUGMENTED = {"train": {"random_resized_crop": [0.5, 1.0], "random_rotation": 10.0, "color_jitter": [0.2, 0.2, 0.2, 0.0],
                       "random_erasing": 0.3}}
PLAIN = {"train": {"random_horizontal_flip": False}}
KNOBS = {"lr": 0.02, "batch_size": 7, "num_epochs": 3, "mixup_alpha": 0.3, "ema_decay": 0.9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    "Sixty photographs of noise in two classes: JPEGs, some lying on their side, some grey, some PNG."
    folder = tmp_path_factory.mktemp("loading")
    (folder/"settings.ini").write_text("[imgcls]\n")
    for i in range(60):
        r = np.random.default_rng(i)
        image = Image.fromarray(r.integers(0, 256, (*r.integers(20, 50, 2), 3), dtype=np.uint8))
        exif = Image.Exif()
        if i % 7 == 0: exif[0x0112] = 6
        file = folder/"photos"/"ab"[i % 2]/f"{i}.{'png' if i % 5 == 0 else 'jpg'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.convert("L" if i % 6 == 0 else "RGB").save(file, exif=exif)
    return folder


@pytest.fixture(autouse=True)
def young_files_are_kept(monkeypatch): monkeypatch.setattr(cache, "TOO_YOUNG", 0.0)


def photos(folder: Path, where: str = "off", workers: int = 0, transforms: dict | None = None) -> ImageData:
    os.chdir(folder)
    return ImageData.from_folder("photos", size=(16, 20), transforms=transforms or AUGMENTED, cache=where,
                                 num_workers=workers)


def trained(folder: Path, name: str, data: ImageData, **more) -> Path:
    learn = Learner(data, "tiny_net", name=name, progress="pipe", **KNOBS)
    learn.fit(**more)
    return learn.run.folder


@pytest.fixture(scope="module")
def plainly(folder) -> dict[str, dict]:
    "What the run ends with when each image is decoded, seeded and transformed by itself, every time."
    with mock.patch.object(loaders, "batch_reader", lambda dataset: None):
        return {name: outcome(trained(folder, f"plainly_{name}", photos(folder, transforms=transforms)))
                for name, transforms in (("augmented", AUGMENTED), ("plain", PLAIN))}


def check_equal(run: Path, expected: dict) -> None:
    found = first_difference(outcome(run), expected)
    assert found is None, f"{run.name}: {found}"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["off", "disk", "ram", "auto"])
def test_no_way_of_loading_changes_a_bit(folder, plainly, where, workers):
    data = photos(folder, where, workers)
    run = trained(folder, f"{where}_{workers}", data)
    check_equal(run, plainly["augmented"])
    told = data.batches("train").loading()
    if where in ("disk", "ram"): assert told["asked"] - told["found"] in (0, 51) and told["found"] > 100


def test_nothing_is_drawn_where_nothing_can_be(folder, plainly):
    check_equal(trained(folder, "plain_parts", photos(folder, transforms=PLAIN)), plainly["plain"])
    check_equal(trained(folder, "plain_kept", photos(folder, "disk", 2, PLAIN)), plainly["plain"])


class Stop(Callback):
    "An interrupt in the middle of the second epoch."
    def on_batch_end(self, state) -> None:
        if (state.epoch, state.batch) == (1, 3): state.stop("enough", by_hand=True)


@pytest.mark.parametrize(("before", "after"), [
    (("off", 0), ("disk", 2)), (("disk", 2), ("ram", 0)), (("ram", 2), ("off", 2))])
def test_a_resume_may_load_in_another_way(folder, plainly, before, after):
    name = "_".join(map(str, ("resumed", *before, *after)))
    with pytest.raises(TrainingInterrupted): trained(folder, name, photos(folder, *before), callbacks=[Stop()])
    learn = Learner.from_run(name, photos(folder, *after), progress="pipe")
    check_equal(learn.resume().run.folder, plainly["augmented"])


def test_albumentations_of_ones_own_draw_for_the_image_and_the_epoch(folder):
    "From the file's pixels to the network's numbers; with two workers, and after a stop without."
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    made = pytest.importorskip("albumentations")
    ends = [made.Normalize(), made.ToTensorV2()]
    own = {"train_transform": made.Compose([made.RandomResizedCrop((16, 20)), made.HorizontalFlip(p=0.5), *ends]),
           "eval_transform": made.Compose([made.Resize(16, 20), *ends])}
    os.chdir(folder)
    data = lambda workers: ImageData.from_folder("photos", size=(16, 20), num_workers=workers, **own)
    expected = outcome(trained(folder, "own", data(0)))
    with pytest.raises(TrainingInterrupted): trained(folder, "own_resumed", data(2), callbacks=[Stop()])
    check_equal(Learner.from_run("own_resumed", data(0), progress="pipe").resume().run.folder, expected)


class Repaint(Callback):
    "Another picture under an old name, in the middle of a training."
    def __init__(self, file: Path): self.file = file

    def on_epoch_end(self, state) -> None:
        if state.epoch == 1: Image.new("RGB", (30, 40), "orange").save(self.file)


def test_a_file_that_changes_is_seen_as_it_is(folder, plainly):
    ends, file = {}, folder/"photos"/"a"/"2.jpg"
    before = file.read_bytes()
    for where in ("off", "disk", "ram"):
        file.write_bytes(before)
        ends[where] = trained(folder, f"repainted_{where}", photos(folder, where), callbacks=[Repaint(file)])
    file.write_bytes(before)
    for where in ("disk", "ram"): check_equal(ends[where], outcome(ends["off"]))
    assert first_difference(outcome(ends["off"]), plainly["augmented"]) is not None


def test_two_processes_build_one_cache(folder, plainly):
    (folder/"settings.ini").write_text("[imgcls]\ncache_dir = shared\n")
    try:
        pids = [start(lambda i=i: trained(folder, f"twin_{i}", photos(folder, "disk", i)), folder/f"twin_{i}.log")
                for i in range(2)]
        for i, pid in enumerate(pids): assert finish(pid) == 0, (folder/f"twin_{i}.log").read_text()[-3000:]
    finally: (folder/"settings.ini").write_text("[imgcls]\n")
    for i in range(2): check_equal(folder/"runs"/f"twin_{i}", plainly["augmented"])
    assert not [*(folder/"shared").rglob("*.part")] and [*(folder/"shared").rglob("*")]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_costs_time_only(folder, plainly, workers, capfd):
    real, full = os.replace, OSError(28, "No space left on device")

    def replace(source, target):
        if "/full/" in str(target): raise full
        return real(source, target)

    (folder/"settings.ini").write_text("[imgcls]\ncache_dir = full\n")
    try:
        with ExitStack() as stack:
            stack.enter_context(mock.patch("os.replace", replace))
            run = trained(folder, f"full_{workers}", photos(folder, "disk", workers))
    finally: (folder/"settings.ini").write_text("[imgcls]\n")
    check_equal(run, plainly["augmented"])
    assert capfd.readouterr().err.count("no space left on device") <= 1
    assert sum(file.read_text().count("no space left on device") for file in (run/"logs").iterdir()) == 1


def test_tensors_are_looked_up_as_if_one_by_one(folder):
    images = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = {"train": (images[:44], torch.arange(44) % 3), "val": (images[44:], torch.arange(16) % 3)}
    os.chdir(folder)
    with mock.patch.object(loaders, "batch_reader", lambda dataset: None):
        expected = outcome(trained(folder, "one_by_one", ImageData(parts, ["a", "b", "c"])))
    check_equal(trained(folder, "looked_up", ImageData(parts, ["a", "b", "c"])), expected)
