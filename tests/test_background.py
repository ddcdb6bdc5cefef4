"Training in a thread: interrupts at any moment, the end of the process, SIGTERM. Nothing is lost, and no bit differs."
import json
import signal
import sys
import time

import pytest
from conftest import Workspace, output_of


@pytest.fixture(autouse=True)
def images(workspace: Workspace) -> None: workspace.few_digits()


SETUP = """
import torch; torch.set_num_threads(1)
import os, random, signal, sys, threading, time
from imgcls import Callback, ImageData, Learner, Run
class Slow(Callback):
    def on_batch_end(self, state): time.sleep(0.01)
data = ImageData.from_folder('data/digits', size=16)
def learner(name, n_epochs, **more):
    return Learner(data, 'tiny_net', lr=0.02, batch_size=16, num_epochs=n_epochs, name=name, progress='pipe', **more)
"""
PEPPER = SETUP + """
learn = learner('peppered', 6, callbacks=[Slow()]).fit(background=True)
path, armed, n = data.paths('test')[0], [False], 0
def pepper():
    while True:
        time.sleep(random.uniform(0.001, 0.06))
        if armed[0]: armed[0] = False; os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=pepper, daemon=True).start()
while learn.background.running:
    try:
        try:
            armed[0] = True
            while learn.background.running: learn.predict(path)
        except KeyboardInterrupt: n += 1
        armed[0] = False
    except KeyboardInterrupt: n += 1
time.sleep(0.1)
learn.wait()
straight = learner('straight', 6).fit()
ours, theirs = learn.network.state_dict(), straight.network.state_dict()
same = all(torch.equal(ours[key], theirs[key]) for key in ours)
print(n, same, learn.history.same_as(straight.history))
"""


def test_interrupting_who_looks_changes_nothing(workspace: Workspace):
    "A cell that predicts while it trains is interrupted at random moments."
    n, *same = workspace.python(PEPPER).split()
    assert int(n) >= 10 and same == ["True", "True"], (n, same)


@pytest.mark.parametrize("end", ["falls off its end", "SIGTERM"])
def test_a_process_that_ends_saves_first(workspace: Workspace, end: str):
    code = SETUP + "learn = learner('left', 500).fit(background=True)\nwhile learn.state.step < 30: time.sleep(0.01)\n"
    if end == "SIGTERM": code += "print('ready', flush=True)\nwhile True: time.sleep(0.05)\n"
    process = workspace.launch(sys.executable, "-c", code, fresh=end != "SIGTERM")      # what an interpreter does last
    if end == "SIGTERM":
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    said = output_of(process, 120)[1]
    assert process.returncode == (-signal.SIGTERM if end == "SIGTERM" else 0), said
    assert end != "SIGTERM" or time.monotonic() - started < 30
    seen = json.loads(workspace.python(SETUP + """
import json
run = Run.open('left')
learn = Learner.from_run(run, progress='pipe')
print(json.dumps([run.summary().status, run.summary().step, learn.state.step]))
""").splitlines()[-1])
    assert seen[0] == "interrupted" and seen[1] == seen[2] >= 30, (seen, said)


def test_a_second_training_leaves_nothing_behind(workspace: Workspace):
    said = workspace.python(SETUP + """
one, two = learner('one', 3, callbacks=[Slow()]).fit(background=True), learner('two', 1)
for more in ({}, {'background': True}):
    try: two.fit(**more)
    except Exception as error: print(type(error).__name__, two.run)
one.wait()
print(one.state.status, sorted(os.listdir('runs')), two.fit().state.status)
""")
    assert said.splitlines() == ["ConfigError None", "ConfigError None", "completed ['one'] completed"], said


AT_ONCE = SETUP + """
def looks(learn):
    learn.evaluate('val')
    learn.lr_find(n_steps=20)
    learn.explain(data.paths('val')[0])
ends = []
for k in range(3):
    learn = learner(f'run{k}', 2).fit(background=True)
    if k: looks(learn)                  # in the very moment it starts
    ends.append(learn.wait())
first, *others = (learn.network.state_dict() for learn in ends)
print(*(all(torch.equal(first[key], other[key]) for key in first) for other in others))
"""


def test_looking_at_once_changes_nothing(workspace: Workspace):
    "As Run All does: the next cell looks while the thread is about to start."
    assert workspace.python(AT_ONCE) == "True True\n"


DISTURBED = """
import threading
import numpy as np
from torch import nn
from torchvision.ops import StochasticDepth
from imgcls.checkpointing import first_difference
from imgcls.keeping import load_checkpoint
class Net(nn.Module):
    "All that draws in a network: first weights, stochastic depth, dropout."
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 4)
        self.depth, self.dropout = StochasticDepth(0.5, 'row'), nn.Dropout(0.3)
    def forward(self, images):
        features = self.first(images).relu()
        return self.head(self.dropout((features + self.depth(self.second(features))).mean((2, 3))))
changes = {'train': dict(random_rotation=20.0, random_horizontal_flip=True, randaugment=(2, 9), random_erasing=0.5)}
augmented = ImageData.from_folder('data/digits', size=16, transforms=changes)
def new(name, workers):
    torch.manual_seed(1)
    return Learner(augmented, Net(), lr=0.02, batch_size=16, num_epochs=2, name=name, progress='pipe', mixup_alpha=0.4,
                   cutmix_alpha=1.0, num_workers=workers, callbacks=[Slow()])
def disturb(learn, until_step=10**9):
    n = 0
    while learn.background.running and learn.state.step < until_step:
        torch.manual_seed(0), nn.Linear(4, 4), torch.rand(3), np.random.rand(), random.shuffle([1, 2, 3])
        time.sleep(0.001)
        n += 1
    return n
def same(one, other):
    ours, theirs = (load_checkpoint(learn.run.weights/'last.pt') for learn in (one, other))
    skip = ('history', 'seconds', 'environment', 'config', 'saved', 'rng')      # clocks; what cells drew from NumPy
    wrong = [key for key in ours if key not in skip and first_difference(ours[key], theirs[key])]
    generators = torch.equal(ours['rng']['torch'], theirs['rng']['torch'])
    return not wrong and generators and one.history.same_as(other.history)
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cells_draw_changes_nothing(workspace: Workspace, workers: int):
    "Augmentation, mixup and cutmix, dropout, stochastic depth: the main thread draws and seeds for the whole time."
    said = workspace.python(SETUP + DISTURBED + f"""
straight = new('straight', {workers}).fit()
learn = new('disturbed', {workers}).fit(background=True)
n = disturb(learn)
learn.wait()
print(n > 100, same(straight, learn))
""")
    assert said == "True True\n", said


def test_background_and_foreground_resume_each_other(workspace: Workspace):
    said = workspace.python(SETUP + DISTURBED + """
straight = new('straight', 0).fit()
for k, (first, second) in enumerate([(True, False), (False, True)]):
    learn = new(f'run{k}', 0)
    class Stop(Callback):
        def on_batch_end(self, state):
            if state.step == 15: state.stop('half way')
    learn.fit(callbacks=[Stop()], background=first)
    if first:
        disturb(learn)
        learn.wait()
    torch.rand(5)
    learn = Learner.from_run(f'run{k}', augmented, network=Net(), progress='pipe', callbacks=[Slow()])
    at = learn.state.step
    learn.resume(background=second)
    if second:
        disturb(learn)
        learn.wait()
    print(at, same(straight, learn))
""")
    assert said == "15 True\n15 True\n", said
