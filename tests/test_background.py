"Training in a thread: interrupts at any moment, the end of the process, SIGTERM. Nothing is lost, and no bit differs."
import json
import signal
import sys
import time

import pytest
from conftest import Workspace, output_of

SETUP = """
import torch; torch.set_num_threads(1)
import os, random, signal, sys, threading, time
from imgcls import Callback, Learner, Run, sample_digits
class Slow(Callback):
    def on_batch_end(self, state): time.sleep(0.003)
data = sample_digits(size=16)
def learner(name, n_epochs, **more):
    return Learner(data, 'tiny_net', lr=0.02, batch_size=64, num_epochs=n_epochs, name=name, progress='pipe', **more)
"""
PEPPER = SETUP + """
learn = learner('peppered', 8, callbacks=[Slow()]).fit(background=True)
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
straight = learner('straight', 8).fit()
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
    process = workspace.launch(sys.executable, "-c", code)
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
