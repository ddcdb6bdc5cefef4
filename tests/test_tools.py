"""Every tool of training goes on after a stop as if nothing had happened: alone, and with all that combine.

Each run is trained straight and, once more, stopped in the midst of epochs, each time opened again from the disk.
All in one process; the last test kills real ones, as test_resume does. What does not combine is refused.
"""
import os
import random
import time
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_resume import check_equal, do, killed

from imgcls import ImageData, Learner
from imgcls.checkpointing import first_difference
from imgcls.core import ConfigError
from imgcls.keeping import load_checkpoint
from imgcls.training import Callback
from imgcls.verification import outcome

IMAGES = {"ant": 20, "bee": 12, "cat": 8}       # of each class, unequal for `balance`


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    "Noise of three brightnesses, in folders; and a table that gives each image up to two labels."
    folder, rng = tmp_path_factory.mktemp("tools"), np.random.default_rng(0)
    (folder/"settings.ini").write_text("[imgcls]\n")
    rows = ["path,label,split"]
    for k, (kind, n) in enumerate(IMAGES.items()):
        (folder/"images"/kind).mkdir(parents=True)
        for i in range(n):
            file = folder/"images"/kind/f"{i}.png"
            Image.fromarray(rng.integers(60*k, 60*k + 130, (16, 16, 3), dtype=np.uint8)).save(file)
            labels = " ".join(["bright"]*(k > 0) + ["even"]*(i % 2 == 0))
            rows.append(f"{file.relative_to(folder)},{labels},{'val' if i % 5 == 4 else 'train'}")
    (folder/"several.csv").write_text("\n".join(rows))
    return folder


def of_folders(workers: int = 0, **more) -> ImageData:
    return ImageData.from_folder("images", size=16, test_ratio=0, val_ratio=0.2, num_workers=workers, **more)


def several(workers: int = 0, **more) -> ImageData:
    return ImageData.from_csv("several.csv", size=16, label_separator=" ", num_workers=workers, **more)


class Stop(Callback):
    "Ends training after a batch, or after the first batch of an epoch's validation."
    def __init__(self, epoch: int = -1, batch: int | None = None): self.epoch, self.batch = epoch, batch

    def on_batch_end(self, state) -> None:
        if (state.epoch, state.batch) == (self.epoch, self.batch) and not state.in_step: state.stop("enough")

    def on_val_batch_end(self, state) -> None:
        if state.epoch == self.epoch and self.batch is None: state.stop("enough")


ONCE = [Stop(1, 2), Stop()]                     # of six batches an epoch, in two epochs
STOPS = [Stop(0, 4), Stop(1, 4), Stop()]
STEPS = [{"type": "albumentations.CoarseDropout", "p": 0.5}]
WARPS = [{"type": "RandomPerspective", "p": 0.5}]


def begin(folder: Path, name: str, data=of_folders, network: str = "tiny_net", workers: int = 0, look=None, **more):
    os.chdir(folder)
    settings = {"lr": 0.02, "batch_size": 6, "num_epochs": 2, "checkpoint_every": None, **more}
    return Learner(data(workers, **look or {}), network, name=name, progress="pipe", trackers=[], **settings)


DEEP = "timm/test_resnet"
PLAIN = {"plain": {}, "plain_deep": {"network": DEEP}, "plain_several": {"data": several}}
TOOLS = {
    "frozen_epochs": {"frozen_epochs": 1},
    "layer_decay": {"layer_decay": 0.5},
    "freeze": {"freeze": "features.6"},
    "balance_loss": {"balance": "loss"},
    "balance_sampler": {"balance": "sampler"},
    "balance_logits": {"balance": "logits"},
    "augment": {"look": {"augment": "strong"}},
    "augmix": {"look": {"transforms": {"train": {"augmix": {"severity": 3}}}}},
    "albumentations": {"look": {"transforms": {"train": {"extra": STEPS}}}},
    "torchvision": {"look": {"transforms": {"train": {"extra": WARPS}}}},
    "mix": {"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "mix_epochs": 1, "mix_probability": 0.8},
    "ema": {"ema_decay": 0.9, "ema_warmup": True},
    "swa": {"swa_epochs": 2, "swa_lr": 0.01, "clip_norm": 1.0, "accumulate": 2, "scheduler": "cosine"},
    "sam": {"sam_rho": 0.05, "accumulate": 2},
    "muon": {"optimizer": "muon", "backbone_lr_factor": 0.5},
    "lamb": {"optimizer": "timm/lamb"},
    "rmsprop": {"optimizer": "rmsprop"},
    "warm_restarts": {"scheduler": "warm_restarts", "restart_epochs": 0.7, "warmup_epochs": 0.5},
    "plateau_monitor": {"scheduler": "plateau", "patience": 0, "plateau_monitor": "val_accuracy", "num_epochs": 3},
    "size_schedule": {"size_schedule": [[0, 12], [1, 16]]},
    "gradient_checkpointing": {"network": DEEP, "gradient_checkpointing": True},
    "stochastic_depth": {"network": DEEP, "stochastic_depth": 0.5},
    "several": {"data": several, "loss": "asymmetric", "pos_weights": "balanced"},
}


TOGETHER = {        # as many as go together
    "first": {"network": DEEP, "frozen_epochs": 1, "layer_decay": 0.7, "balance": "sampler", "accumulate": 2,
              "look": {"transforms": {"train": {"augment": "strong", "extra": [*STEPS, *WARPS]}}}, **TOOLS["mix"],
              **TOOLS["ema"], "sam_rho": 0.05, "optimizer": "muon", "weight_decay": 0.1, **TOOLS["warm_restarts"],
              **TOOLS["size_schedule"], "gradient_checkpointing": True, "stochastic_depth": 0.5, "clip_norm": 1.0,
              "label_smoothing": 0.1, "early_stopping": 9, "metrics": ["auroc", "calibration_error"],
              "monitor": "val_balanced_accuracy"},
    "second": {**TOOLS["swa"], "freeze": "features.6", "frozen_epochs": 1, "balance": "logits", "sam_rho": 0.1,
               **TOOLS["augmix"], **TOOLS["mix"], "optimizer": "timm/lamb", "backbone_lr_factor": 0.5,
               **TOOLS["plateau_monitor"], "loss": "focal", "precision": "bfloat16", "metrics": ["macro_f1"]},
    "several": {**TOOLS["several"], **TOOLS["ema"], "frozen_epochs": 1, "label_smoothing": 0.05, "early_stopping": 9,
                "look": {"augment": "standard"}, **TOOLS["size_schedule"], "mixup_alpha": 0.3, "optimizer": "rmsprop",
                "metrics": ["auroc", "macro_f1", "micro_f1", "exact_match", "hamming_accuracy"], "sam_rho": 0.05},
}


@cache
def whole(folder: Path, name: str) -> float:
    "Train straight through; the seconds that it takes."
    begun = time.monotonic()
    learn = begin(folder, f"{name}_whole", **(TOOLS | TOGETHER)[name]).fit(callbacks=[Stop()])
    assert learn.state.n_batches == 6
    return time.monotonic() - begun


def law_resume(folder: Path, name: str, stops: Iterable[Stop] = ONCE, workers: int = 0) -> None:
    "Stopping anywhere changes nothing, nor do workers, who come and go at each stop."
    whole(folder, name)
    first, *others = stops
    begin(folder, name, workers=workers, **(TOOLS | TOGETHER)[name]).fit(callbacks=[first])
    for i, stop in enumerate(others):
        learn = Learner.from_run(name, progress="pipe", num_workers=workers if i % 2 else 0)
        learn.resume(callbacks=[stop])
    same_as_whole(folder, name, name)


def same_as_whole(folder: Path, name: str, whole: str) -> None:
    check_equal(folder, name, (outcome(folder/"runs"/f"{whole}_whole"), 0.0), f"{whole}_whole")


@pytest.fixture(scope="module")
def plain(folder) -> dict:
    "The weights that each network learns without a tool."
    for name, setting in PLAIN.items(): begin(folder, name, **setting).fit()
    return {name: load_checkpoint(folder/"runs"/name/"weights"/"last.pt")["network"] for name in PLAIN}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_alone(folder, plain, tool):
    setting = TOOLS[tool]
    law_resume(folder, tool)
    like = "plain_deep" if "network" in setting else "plain_several" if "data" in setting else "plain"
    learned = load_checkpoint(folder/"runs"/tool/"weights"/"last.pt")
    changed = first_difference(learned["network"], plain[like]) is not None
    assert changed == (tool not in ("ema", "gradient_checkpointing")), "it did something"


@pytest.mark.parametrize("name", TOGETHER)
def test_tools_together(folder, name):
    "Stopped in a validation, too, where averages answer; with two workers and without."
    law_resume(folder, name, [Stop(0, 4), Stop(1, 2), Stop(1), Stop()], workers=2)


def test_fine_tuning_goes_on(folder):
    "Phases that `fine_tune` plans, with images that grow and an average of all epochs."
    setting = {"size_schedule": [[0, 12], [1, 16]], "swa_epochs": 2, "num_epochs": 3, "layer_decay": 0.5}
    begin(folder, "tuned_whole", **setting).fine_tune(1, frozen_epochs=1, callbacks=[Stop()])
    begin(folder, "tuned", **setting).fine_tune(1, frozen_epochs=1, callbacks=[STOPS[0]])
    for stop in STOPS[1:]: learn = Learner.from_run("tuned", progress="pipe").resume(callbacks=[stop])
    same_as_whole(folder, "tuned", "tuned")
    sides = [learn.setup.data_in(epoch).dataset("train")[0][0].shape[-1] for epoch in range(2)]
    assert sides == [12, 16] and learn.state.train_batches.dataset[0][0].shape[-1] == 16


REFUSED = [
    ({"swa_epochs": 1, "ema_decay": 0.9}, "`swa_epochs` and `ema_decay` both say which weights answer"),
    ({"swa_epochs": 1, "early_stopping": 3}, "before which `early_stopping` may end it"),
    ({"swa_epochs": 3}, "`swa_epochs` must be at most the 2 epochs of the plan"),
    ({"swa_lr": 0.1}, "`swa_lr` needs `swa_epochs`"),
    ({"ema_warmup": True}, "`ema_warmup` needs `ema_decay`"),
    ({"sam_rho": 0.05, "precision": "float16"}, "`sam_rho` needs float32 or bfloat16"),
    ({"sam_rho": 0.05, "compile": "reduce-overhead"}, "`sam_rho` needs `compile` default or null"),
    ({"gradient_checkpointing": True, "compile": "default"}, "`gradient_checkpointing` needs `compile` null"),
    ({"frozen_epochs": 1, "freeze": "backbone"}, "`freeze: backbone` never does"),
    ({"frozen_epochs": 2}, "`frozen_epochs` must be less than the 2"),
    ({"layer_decay": 0.5, "backbone_lr_factor": 0.5}, "both say how fast the backbone moves"),
    ({"balance": "loss", "class_weights": "balanced"}, "would make up for the same thing twice"),
    ({"balance": "logits", "class_weights": "balanced"}, "would make up for the same thing twice"),
    ({"balance": "loss", "data": several}, "`balance` is for images of one class each"),
    ({"loss": "cross_entropy", "data": several}, "Try binary_cross_entropy"),
    ({"loss": "asymmetric"}, "asymmetric"),
    ({"pos_weights": "balanced"}, "`pos_weights` are for several labels"),
    ({"mix_epochs": 1}, "`mix_epochs` needs `mixup_alpha` or `cutmix_alpha`"),
    ({"scheduler": "cosine", "plateau_monitor": "val_loss"}, "`plateau_monitor` belongs to plateau, not to cosine"),
    ({"scheduler": "cosine", "restart_epochs": 1.0}, "`restart_epochs` belongs to warm_restarts"),
    ({"scheduler": "one_cycle", "warmup_epochs": 0.5}, "one_cycle"),
    ({"size_schedule": [[0, 8], [1, 12]]}, "`size_schedule` must end with the data's size"),
    ({"stochastic_depth": 0.5}, "`stochastic_depth` needs residual blocks"),
    ({"augment": "strong"}, "belongs to the data"),
    ({"look": {"transforms": {"train": {"augmix": True, "trivial_augment": True}}}}, "Choose one of `randaugment`"),
    ({"look": {"augment": "strong", "transforms": {"train": {"augment": "light"}}}}, "must be given once"),
]


def test_what_does_not_combine_is_refused(folder):
    for setting, said in REFUSED:
        with pytest.raises(ConfigError) as error: begin(folder, "refused", **setting)
        assert said in str(error.value), (setting, str(error.value))
    assert not (folder/"runs"/"refused").exists()


@pytest.mark.parametrize(("tools", "wanted"), [("first", 2), ("second", 1), ("several", 1)])
def test_killed_at_random_instants(folder, tools, wanted):
    "With two workers and without; each goes on in another process."
    r, name, kills, seconds = random.Random(tools), f"{tools}_killed", 0, whole(folder, tools)
    last = lambda: folder/"runs"/name/"weights"/"last.pt"

    def go_on(workers: int = 0) -> None:
        os.chdir(folder)
        if last().exists(): learn = Learner.from_run(name, progress="pipe", num_workers=workers).resume
        else: learn = begin(folder, name, workers=workers, checkpoint_every="1 steps", **TOGETHER[tools]).fit
        learn(callbacks=[Stop()])

    for n in range(20):
        if kills == wanted: break
        if killed(partial(go_on, n % 2 * 2), folder, r.uniform(0.05, 0.8)*seconds, last()): kills += 1
        else:                           # it was faster
            same_as_whole(folder, name, tools)
            name, seconds = f"{tools}_killed_{n}", 0.7*seconds
    assert kills == wanted
    do(go_on, folder)
    same_as_whole(folder, name, tools)
