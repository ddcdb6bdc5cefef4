"""Processes that begin with torch and the library loaded: forks of a server that has loaded them, and nothing else.

Loading takes six seconds, most of what a short training takes; forking takes a tenth of one. A server is a fresh
process that imports, and runs nothing: no thread, no file, no random number. What it forks becomes a child of
the process that asked, in a session of its own, with the environment, the folder, the arguments, the streams and
the `__main__` that a fresh process would have, and ends as one does. What differs: modules are loaded that a fresh
process might not load, and all hash texts alike. Tests of these ask for fresh processes.
"""
import atexit
import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

LOADED = ("torch", "torchvision", "numpy", "pandas", "matplotlib.figure", "matplotlib.backends.backend_agg",
          "sklearn.metrics", "torch.utils.tensorboard", "tqdm.auto", "imgcls.pipeline", "imgcls.cli",
          "imgcls.commands", "imgcls.data_commands", "imgcls.run_commands", "imgcls.init_command",
          "imgcls.reproduce_command", "imgcls.verification", "imgcls.inference", "imgcls.interpretation",
          "imgcls.listing")
ENVIRONMENT = {"PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1",
               "JE_ARROW_MALLOC_CONF": "background_thread:false"}       # of pyarrow
SUBREAPER = 36              # of prctl(2): orphans below this process become its children


class Fork(subprocess.Popen):
    "As `subprocess.Popen` of the words that stand behind `python`: `-c code ...`, `-m module ...` or `file ...`."

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags,
                       shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *rest: Any) -> None:
        streams = [own if own != -1 else i for i, own in enumerate((p2cread, c2pwrite, errwrite))]
        self.pid = _server().fork({"command": list(args), "folder": str(cwd or os.getcwd()),
                                   "environment": dict(env or os.environ)}, streams)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


class Server:
    "One for this process; it ends with it."

    def __init__(self):
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                                        env=os.environ | ENVIRONMENT,
                                        stdin=subprocess.DEVNULL, start_new_session=True)
        theirs.close()
        assert self.channel.recv(16) == b"loaded"

    def fork(self, job: dict[str, Any], streams: list[int]) -> int:
        "The pid of a new child of this process."
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(SUBREAPER, 1, 0, 0, 0) == 0, os.strerror(ctypes.get_errno())
        try:
            socket.send_fds(self.channel, [json.dumps(job).encode()], streams)
            return int(self.channel.recv(16))
        finally: libc.prctl(SUBREAPER, 0, 0, 0, 0)


@cache
def _server() -> Server: return Server()


def serve(channel: socket.socket) -> dict[str, Any]:
    "Fork as long as somebody asks; returns in each child, with its job."
    while True:
        message, streams, *_ = socket.recv_fds(channel, 1 << 20, 3)
        if not message: os._exit(0)                         # whoever asked has ended
        reading, writing = os.pipe()
        if between := os.fork():
            pid = os.read(reading, 16)
            os.waitpid(between, 0)                          # now its child is an orphan, and has been taken
            for file in (reading, writing, *streams): os.close(file)
            channel.send(pid)
            continue
        if os.fork(): os._exit(0)
        os.setsid()
        os.write(writing, str(os.getpid()).encode())
        for number, file in enumerate(streams): os.dup2(file, number)
        for file in (reading, writing, *streams): os.close(file)
        channel.close()
        return json.loads(message)


def become(job: dict[str, Any]) -> None:
    "Do what `python` does with these arguments."
    import numpy as np
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    tempfile.tempdir = None             # whoever was loaded may have asked where it is
    np.random.seed()                    # the others do so, or begin with the same state in every process
    kind, *words = job["command"]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if kind == "-c":
        sys.argv, sys.path[0] = ["-c", *words[1:]], ""
        exec(compile(words[0], "<string>", "exec"), vars(main))
    elif kind == "-m":
        sys.argv, sys.path[0] = words, os.getcwd()
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [kind, *words], str(Path(kind).parent)
        main.__file__ = kind
        exec(compile(Path(kind).read_bytes(), kind, "exec"), vars(main))


def end_after(work: Callable[[], None]) -> NoReturn:
    "End as Python does after its main program; only the thousand modules are not taken apart, which takes a second."
    code: int | None = 1
    try:
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and end.code != code: print(end.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt): code = None
    threading._shutdown()               # as Python's own end: wait for threads, then what is registered, then flush
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None: stream.flush()
    except OSError: code = 120
    if code is None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 255)


def load() -> None:
    "What every fork needs sooner or later; what the keys of a config mean is read from the source, half a second."
    for name in LOADED:
        with suppress(ImportError): import_module(name)     # an extra may be missing
    from imgcls.config import dump_yaml
    from imgcls.experiment import ExperimentConfig
    dump_yaml(ExperimentConfig())


if __name__ == "__main__":
    load()
    gc.freeze()                         # what is loaded is never searched, nor copied by a search
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would be missing in the children"
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.send(b"loaded")
    job = serve(channel)
    end_after(partial(become, job))
