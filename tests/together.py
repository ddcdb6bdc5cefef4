"What `test_processes.py` has done by one, two or three processes, which are forked from one that has loaded all."
import copy
import json
import os
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed.fsdp  # here, and not in each process
from torch import nn

from imgcls import ImageData, Learner
from imgcls.callbacks import EMA
from imgcls.checkpointing import plain as snapshot
from imgcls.cli import train_command
from imgcls.core import ConfigError
from imgcls.division import ELEMENTWISE, divide, is_divided, pieces_for, whole
from imgcls.optimizers import OptimizerConfig, build_optimizer
from imgcls.processes import team_here
from imgcls.samples import write_digits
from imgcls.seeding import seed_all
from imgcls.training import Callback, State, StopAt


class Exact(nn.Module):
    "A network that computes in float64, without BatchNorm and dropout: the order of sums is all that may differ."

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.GELU(), nn.Conv2d(4, 8, 3, 2, 1), nn.GELU(),
                                  nn.Flatten())
        self.fc = nn.Linear(32, 10)
        self.double()

    def forward(self, images: torch.Tensor) -> torch.Tensor: return self.fc(self.body(images.double()))


def digits(n_train: int = 50, n_val: int = 21, **options: Any) -> ImageData:
    "Some of the digits; their classes are unequal."
    folder = write_digits(Path("data/digits"), of_each=14)
    rows = [(str(file), file.parent.name) for file in sorted(folder.rglob("*.png"))]
    files = pd.DataFrame(rows, columns=["path", "label"])
    chosen = files.sample(frac=1, random_state=3)
    chosen = pd.concat([chosen[chosen.label < "3"], chosen[chosen.label >= "3"].groupby("label").head(5)])
    chosen = chosen.sample(frac=1, random_state=1).head(n_train + n_val).reset_index(drop=True)
    split = ["train" if i < n_train else "val" for i in range(len(chosen))]
    looks = {"train": {"random_horizontal_flip": False, "random_rotation": 10.0}}
    return ImageData.from_dataframe(chosen.assign(split=split), 8, mode="L", transforms=looks, cache="off",
                                    num_workers=0, **options)


EVERYTHING = {"batch_size": 16, "accumulate": 2, "mixup_alpha": 0.4, "cutmix_alpha": 1.0, "clip_norm": 0.5,
              "ema_decay": 0.9, "early_stopping": 3, "label_smoothing": 0.1, "metrics": ["f1", "balanced_accuracy"],
              "num_epochs": 4, "lr": 0.05}
CASES: dict[str, dict[str, Any]] = {
    "everything": EVERYTHING | {"class_weights": "balanced"},
    "sampler": {"batch_size": 16, "balance": "sampler", "sam_rho": 0.05, "swa_epochs": 2, "num_epochs": 3,
                "optimizer": "adamw", "lr": 0.003},
    "logits": {"batch_size": 7, "balance": "logits", "loss": "focal", "num_epochs": 2},
}
WORDS = ["--config", "digits", "num_epochs=1", "batch_size=10", "architecture=tiny_net", "size=8", "seed=3",
         "checkpoint_every=1 steps", "trackers=[]"]
NORMED = {"batch_size": 13, "num_epochs": 3, "optimizer": "adamw", "lr": 0.003, "accumulate": 2}


def learner(case: str, name: str | None = None, **more: Any) -> Learner:
    "A learner of a case."
    common = {"name": name or case, "runs": "runs", "trackers": [], "progress": "pipe", **more}
    if case in CASES:
        seed_all(7)
        learn = Learner(digits(), Exact(), **CASES[case], **common)
        learn.state.loss_fn.double()
        return learn
    return Learner(digits(), "tiny_net", **{"sync_batchnorm": case == "synced", **NORMED, **common})


def told(learn: Learner, file: Path) -> None:
    "What came out of it."
    average = next((c.average for c in learn.callbacks if isinstance(c, EMA)), None)
    weights, average = snapshot([learn.network.state_dict(), average])      # of all processes, where it is in pieces
    if learn.state.team.rank: return
    epochs = learn.history.epochs.drop(columns="seconds").to_dict("list")
    torch.save({"weights": weights, "epochs": epochs, "losses": learn.history.steps.loss.tolist(),
                "events": learn.history.event_rows(), "status": learn.state.status,
                "average": average, "divided": is_divided(learn.network)}, file)


def laws(folder: Path) -> None:
    "Each case, trained and evaluated."
    for case in CASES:
        learn = learner(case, f"{case}-{folder.name}").fit()
        accuracy = learn.evaluate("val", "last").accuracy
        told(learn, folder/f"{case}.pt")
        if not learn.state.team.rank: (folder/f"{case}.txt").write_text(repr(accuracy))


def stops(folder: Path, cases: tuple[str, ...] = ("synced", "apart")) -> None:
    "With BatchNorm synchronized and not: never stopped, and stopped in the middle of an epoch and resumed."
    for case in cases:
        told(learner(case, f"{case}-{folder.name}").fit(), folder/f"{case}.pt")
        learner(case, f"{case}-{folder.name}-stopped").fit(callbacks=[StopAt(3)])
        learn = Learner.from_run(f"runs/{case}-{folder.name}-stopped", progress="pipe").resume()
        told(learn, folder/f"{case}-stopped.pt")


def pieces(folder: Path) -> None:
    "Stopped in the middle of an epoch and resumed; each optimizer; and who answers."
    stops(folder, ("synced",))
    for kind in ELEMENTWISE: steps(kind)
    learn = Learner.from_run(f"runs/synced-{folder.name}", progress="pipe")
    found = learn.evaluate("val")
    if learn.state.team.rank: return
    alone, (images, _) = learn.predictor(), next(iter(learn.data.batches("val", 21, num_workers=0)))     # it has all
    assert (alone.evaluate(learn.data, split="val").logits - found.logits).abs().max() < 1e-6
    assert not is_divided(alone.network) and len(alone.logits(images)) == 21
    try: learn.predictor("current")
    except ConfigError as error: assert "in pieces" in str(error)
    else: raise AssertionError("it had a piece only")


def steps(kind: str) -> None:
    "An optimizer moves pieces as it moves the whole, also after its memory was saved and loaded."
    seed_all(1)
    networks = [nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double() for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    divide(networks[1], team_here())
    config = OptimizerConfig(type=kind, lr=0.01, weight_decay=0.1)
    optimizers = [build_optimizer(network, config) for network in networks]
    for step in range(4):
        images = torch.randn(4, 5, dtype=torch.float64)
        halves = [range(4), range(team_here().rank, 4, 2)]
        for network, optimizer, rows in zip(networks, optimizers, halves, strict=True):
            optimizer.zero_grad()
            network(images[[*rows]]).square().sum().backward()
            optimizer.step()
        saved = copy.deepcopy(optimizers[0].state_dict())
        if step == 1: optimizers[1].load_state_dict(pieces_for(optimizers[1], saved))
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        assert (one - whole(other)).abs().max() < 1e-10, kind


def goes_on(folder: Path) -> None:
    "A run that stopped is resumed by however many are here now."
    learn = Learner.from_run("runs/everything-moved", network=Exact(), progress="pipe")
    learn.state.loss_fn.double()
    told(learn.resume(), folder/"everything-moved.pt")
    if not learn.state.team.rank: (folder/"notes.txt").write_text("\n".join(learn.run_summary.notes))


def begins(folder: Path) -> None:
    "Stops in the middle of an epoch."
    learner("everything", "everything-moved").fit(callbacks=[StopAt(3)])


class Slowly(Callback):
    "So that there is time to be killed."
    def __init__(self, folder: Path): self.folder = folder

    def on_batch_end(self, state: State) -> None:
        time.sleep(0.02)
        if state.team.rank == 0 and not state.in_step: (self.folder/"step.txt").write_text(f"{state.step}")


def long(folder: Path) -> None:
    "A training that takes a second or two, resumed where there is one; to be killed."
    run = Path("runs")/folder.name
    settings = {"checkpoint_every": "2 steps", "process_timeout": 3.0, "num_epochs": 6}
    if (run/"last.pt").exists(): learn = Learner.from_run(run, progress="pipe", callbacks=[Slowly(folder)]).resume()
    else: learn = learner("apart", folder.name, callbacks=[Slowly(folder)], **settings).fit()
    told(learn, folder/"long.pt")


def commanded(folder: Path) -> None:
    "What `torchrun -m imgcls.cli train` and `imgcls-train --processes` have each of their processes do."
    digits()                    # the command finds those few, and writes no others
    assert train_command([*WORDS, "--name", folder.name]) == 0


def unlike(folder: Path) -> None:
    "Process 1 sees other files."
    Learner(digits(50 - int(os.environ["RANK"])), "tiny_net", runs="runs", trackers=[], progress="pipe")


def too_few(folder: Path) -> None:
    "The last batch leaves a process with one image for BatchNorm, which each normalizes by itself."
    learner("apart", batch_size=12)


class Breaks(Callback):
    "An error of one process."
    def on_batch_start(self, state: State) -> None:
        if state.step == 2 and state.team.rank == 1: raise OSError("the disk of process 1 is gone")


def breaks(folder: Path) -> None:
    "One fails in the middle of an epoch."
    learner("apart", "breaks", callbacks=[Breaks()], num_epochs=2).fit()


class Pauses(Callback):
    "Asks for a pause through control.yaml, and ends it later."
    writes = True

    def __init__(self, run: str): self.file, self.since = Path(run)/"control.yaml", None

    def on_batch_end(self, state: State) -> None:
        if state.step == 2 and self.since is None and not state.in_step:
            self.since = time.monotonic()
            said = self.file.read_text()
            self.file.write_text(said.replace("pause: false", "pause: true"))
            threading.Thread(target=self._end, args=(said,), name="imgcls test", daemon=True).start()
            time.sleep(0.3)             # the file is read ten times a second

    def _end(self, said: str) -> None:
        time.sleep(4)
        self.file.write_text(said.replace("pause: true", "pause: false"))


def pauses(folder: Path) -> None:
    "A pause that is longer than the silence that is borne."
    started = time.monotonic()
    learn = learner("apart", "pauses", callbacks=[Pauses("runs/pauses")], process_timeout=2.0, num_epochs=2).fit()
    told(learn, folder/"pauses.pt")
    if not learn.state.team.rank: (folder/"seconds.txt").write_text(f"{time.monotonic() - started}")


def plain(folder: Path) -> None:
    "The same without a pause."
    told(learner("apart", "plain", num_epochs=2).fit(), folder/"plain.pt")


def start(n: int, work: Any, folder: Path, environment: dict[str, str] | None = None) -> list[int]:
    "Fork the processes; their numbers."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(n):
        if pid := os.fork():
            pids.append(pid)
            continue
        os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{n}", "LOCAL_WORLD_SIZE": f"{n}",
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"} | (environment or {})
        code = 1
        try:
            work(folder)
            code = 0
        except KeyboardInterrupt as error: code, _ = 130, print(error, file=sys.stderr, flush=True)
        except BaseException: print(f"process {rank}: {traceback.format_exc()}", file=sys.stderr, flush=True)
        finally:
            sys.stdout.flush()
            os._exit(code)
    return pids


def launched(n: int, work: Any, folder: Path) -> list[int]:
    "The same by a process that stands in for torch's launcher: its number, and theirs."
    reading, writing = os.pipe()
    launcher = os.fork()
    if not launcher:
        os.environ["TORCHELASTIC_RUN_ID"] = "together"
        pids = start(n, work, folder)
        os.write(writing, json.dumps(pids).encode())
        finished(pids)
        os._exit(0)
    os.close(writing)
    pids = json.loads(os.read(reading, 1000))
    os.close(reading)
    return [launcher, *pids]


def finished(pids: list[int]) -> list[int]:
    "Exit codes; a signal's number with a minus."
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def answer_to(verb: str, what: Any, work: str = "", folder: str = "") -> list[int]:
    "Numbers of processes that were started, or the exit codes of such."
    if verb == "finished": return finished(what)
    *sharded, work = work.split()       # "sharded laws": as accelerate launch says it
    more = [{"ACCELERATE_USE_FSDP": "true"} if sharded else {}] if verb == "start" else []
    return {"start": start, "launch": launched}[verb](what, globals()[work], Path(folder), *more)


def serve() -> None:
    "Start and await teams for a process that cannot fork them itself: a line asks, a line answers."
    for line in sys.stdin:
        verb, *words = json.loads(line)
        print(f"ANSWER {json.dumps(answer_to(verb, *words))}", flush=True)


if __name__ == "__main__": serve()
