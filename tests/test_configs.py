"A config that names code of the user's, from the shell: merged, killed, taken up, loaded; nobody passes an object."
import contextlib
import io
import signal
import sys
from pathlib import Path

import pytest
import torch
from conftest import Workspace, output_of

pytestmark = pytest.mark.timeout(300)

MODULE = '''
import os, signal
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from imgcls.training import Callback

class MyNet(nn.Module):
    def __init__(self, n_classes: int, width: int = 4):
        super().__init__()
        self.body, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, n_classes)
    def forward(self, images): return self.head(F.relu(self.norm(self.body(images))).mean((2, 3)))

class Noise(nn.Module):
    def __init__(self, most: int):
        super().__init__()
        self.most = most
    def forward(self, image):
        import torch
        return (image.int() + torch.randint(-self.most, self.most + 1, image.shape)).clamp(0, 255).to(torch.uint8)

class MyOptimizer(SGD):
    "Every third step is twice as long: it has a memory of its own."
    def __init__(self, params, lr: float, momentum: float, boost: float = 2.0):
        super().__init__(params, lr=lr, momentum=momentum)
        self.boost = boost
    def step(self, closure=None):
        for group in self.param_groups:
            group["n"] = group.get("n", 0) + 1
            group["lr"] *= self.boost if group["n"] % 3 == 0 else 1.0
        return super().step(closure)

class Counts(Callback):
    "Counts batches, and dies at one of them where somebody says so."
    def __init__(self, first: int = 0): self.seen = first
    def on_batch_end(self, state):
        self.seen += 1
        if os.environ.get("DIE_AT") == str(state.step): os.kill(os.getpid(), signal.SIGKILL)
    def state_dict(self): return {"seen": self.seen}
    def load_state_dict(self, saved): self.seen = saved["seen"]

def my_loss(logits, targets): return F.cross_entropy(logits, targets) + 0.01 * logits.square().mean()
'''
BASE = """
data: {data_dir: digits}
transforms:
  train: {resize: [12, 12], extra: [{type: mycode.Noise, most: 3}], random_horizontal_flip: false}
  val: {resize: [12, 12]}
  test: {resize: [12, 12]}
model: {architecture: mycode.MyNet, width: 4}
optimizer: {type: mycode.MyOptimizer, lr: 0.01, momentum: 0.8, boost: 1.5}
"""
TRAIN = """
model: {width: 6}
loss: {type: mycode.my_loss}
training:
  num_epochs: 2
  batch_size: 21
  checkpoint_every: 4 steps
  trackers: []
  callbacks: [{type: mycode.Counts, first: 100}]
"""
CODE = "from imgcls import train; train(['base.yaml', 'train.yaml'], 'seed=5', own={'name': 'mine'})"


def test_code_of_the_user_is_found_again_from_the_shell(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    workspace.few_digits()
    for name, text in {"mycode.py": MODULE, "base.yaml": BASE, "train.yaml": TRAIN}.items():
        (workspace.folder/name).write_text(text)
    with monkeypatch.context() as there:
        there.setenv("DIE_AT", "15")
        process = workspace.launch(sys.executable, "-c", CODE)
        said = output_of(process)
    assert process.returncode == -signal.SIGKILL, said
    run = workspace.folder/"runs"/"mine"
    assert (run/"config.yaml").read_text().startswith("# merged of base.yaml, then train.yaml\n")
    workspace.run("--resume", "mine")       # a command, for which the current folder is no place of modules

    monkeypatch.chdir(workspace.folder)
    from imgcls import load_predictor, train
    from imgcls.checkpointing import read_checkpoint
    straight = train(["base.yaml", "train.yaml"], "seed=5", own={"name": "straight", "progress": "pipe"})
    here, there = read_checkpoint(straight.run.last), read_checkpoint(run/"weights"/"last.pt")
    assert here["step"] == there["step"] == 20 and there["callbacks"]["Counts"] == {"seen": 120}
    assert all(torch.equal(value, there["network"][name]) for name, value in here["network"].items())
    images = straight.data.paths("test")[:30]
    assert (load_predictor("mine").predict(images).probabilities == straight.predict(images).probabilities).all()
    assert straight.objects == {} and set(straight.run.summary().environment["own_code"]) == {
        f"mycode.{name}" for name in ("MyNet", "Noise", "MyOptimizer", "Counts", "my_loss")}
    begun = train(retrain="mine", own={"name": "begun", "progress": "pipe"}, num_epochs=1)
    assert begun.state.step == 10
    assert begun.run_summary.notes[-1].startswith("begins with the weights of run mine: best.safetensors, epoch ")
    sys.modules.pop("mycode")
    Path("mycode.py").unlink()


DATASET = '''
from PIL import Image
from torch.utils.data import Dataset

class Shades(Dataset):
    splits, class_names = ("train", "val", "test"), ["dark", "light"]
    def __init__(self, split: str, transform, n: int): self.transform, self.n = transform, n * 2 ** (split == "train")
    def __len__(self): return self.n
    def __getitem__(self, i): return self.transform(Image.new("RGB", (12, 12), (90 + 60 * (i % 2) + i,) * 3)), i % 2
'''


def test_a_dataset_of_the_user_is_found_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(workspace.folder)
    Path("mydata.py").write_text(DATASET)
    from imgcls import Learner, load_predictor
    small = {phase: {"resize": [12, 12]} for phase in ("train", "val", "test")}
    config = {"data": {"dataset": "mydata.Shades", "n": 16}, "transforms": small, "model": {"architecture": "tiny_net"},
              "training": {"num_epochs": 2, "batch_size": 8, "trackers": []}}
    straight = Learner.from_config(config, own={"name": "straight", "progress": "pipe"}).fit()
    half = Learner.from_config(config, own={"name": "half", "progress": "pipe"}).fit(1)
    with contextlib.redirect_stderr(io.StringIO()) as told: opened = Learner.from_run("half", progress="pipe")
    assert told.getvalue().count("its images is not checked: they come from mydata.Shades.") == 1, told.getvalue()
    assert opened.objects == {} and opened.data.fingerprint == half.data.fingerprint
    opened.plan(2).fit()
    for name, value in straight.network.state_dict().items():
        assert torch.equal(value, opened.network.state_dict()[name]), name
    said = opened.evaluate("test", "last")
    answers = load_predictor("half", "last").evaluate(opened.data, split="test")
    assert (answers.probabilities == said.probabilities).all()
    assert Learner.retrain("half", own={"progress": "pipe"}).data.sizes == {"train": 32, "val": 16, "test": 16}
    with pytest.raises(ValueError, match=r"mydata\.Shades has no argument 'm'"):
        Learner.from_config(config, **{"data.m": 3})
