"What every command promises: help, completion, exit codes; and imgcls-train in a terminal."
import fcntl
import importlib
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import tomllib
from pathlib import Path

import pytest
from conftest import output_of

from imgcls import __version__

PROJECT = tomllib.loads((Path(__file__).parents[1]/"pyproject.toml").read_text())["project"]
COMMANDS = PROJECT["scripts"]


def called(command: str, *words: str) -> int:
    "The exit code of a command in this process."
    room, function = COMMANDS[command].split(":")
    try: return getattr(importlib.import_module(room), function)([*words])
    except SystemExit as end: return end.code or 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_examples(command, capsys):
    assert called(command, "--help") == 0
    said = capsys.readouterr().out
    examples = re.search(r"^examples:\n((?:  .*\n)+)", said, re.M | re.I)
    assert examples and all(line.startswith(f"  {command}") for line in examples[1].splitlines()), said
    assert said.index(examples[0]) < said.rindex("--version")
    for option in ("--debug", "--print_completion"): assert option in said


@pytest.mark.parametrize("command", COMMANDS)
def test_version_and_usage(command, capsys):
    assert called(command, "--version") == 0
    assert capsys.readouterr().out == f"imgcls {__version__}\n"
    assert called(command, "--no_such_flag") == 2
    assert "no_such_flag" in capsys.readouterr().err or command != "imgcls-train"


@pytest.mark.parametrize("command", COMMANDS)
def test_completion_is_a_program_of_the_shell(command, capsys, tmp_path):
    scripts = {}
    for shell in ("bash", "zsh", "tcsh"):
        assert called(command, "--print_completion", shell) == 0
        scripts[shell] = capsys.readouterr().out
        assert command in scripts[shell]
    file = tmp_path/"completion"
    file.write_text(scripts["bash"])
    subprocess.run(["bash", "-n", file], check=True, timeout=20)


def test_completion_offers_flags_and_files(capsys, tmp_path):
    assert called("imgcls-train", "--print_completion", "bash") == 0
    (tmp_path/"completion").write_text(capsys.readouterr().out)
    (tmp_path/"mine.yaml").write_text("")
    offered = "source completion; f=$(complete -p imgcls-train | sed 's/.*-F \\([^ ]*\\).*/\\1/'); " \
              "COMP_WORDS=(imgcls-train {}); COMP_CWORD={}; $f; echo ${{COMPREPLY[@]}}"
    for words, number, expected in (("--batch", 1, "--batch_size"), ("--config mi", 2, "mine.yaml"),
                                    ("--lr 0.1 --st", 3, "--step_size")):
        done = subprocess.run(["bash", "-c", offered.format(words, number)], cwd=tmp_path, text=True, timeout=20,
                              capture_output=True)
        assert expected in done.stdout.split(), done


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
@pytest.mark.parametrize("words", ["--help", "--version", "--print_completion bash"])
def test_help_that_nobody_gets_is_an_error(workspace, words):
    code = "import sys; from imgcls.cli import train_command; sys.exit(train_command())"
    for where, said in ((">/dev/full", "Cannot write to standard output"), (">&-", "it is closed")):
        process = workspace.launch("bash", "-c", f'"$0" -c "$1" {words} {where}', sys.executable, code)
        errors = output_of(process, 20)[1]
        assert process.returncode == 1 and said in errors and errors.count("\n") == 1, errors


WAITING = """
import sys, time
from imgcls.cli import command_parser, ended, write
def work():
    for _ in range(1000):
        write('working\\n')
        time.sleep(0.02)
sys.exit(ended('imgcls-x', command_parser('imgcls-x', 'Wait.').parse_args([]), work))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command(workspace, number, code):
    process = workspace.launch(sys.executable, "-c", WAITING, fresh=True)
    process.stdout.readline()
    process.send_signal(number)
    _, errors = output_of(process, 20)
    assert process.returncode == code and "Traceback" not in errors, errors


def test_who_has_seen_enough_may_go(workspace):
    process = workspace.launch("bash", "-c", '"$0" -c "$1" | head -1; echo ${PIPESTATUS[0]}', sys.executable, WAITING)
    printed, errors = output_of(process, 20)
    assert printed.split() == ["working", "141"] and not errors, (printed, errors)


def test_what_is_surely_missing_is_said_before_torch_is_loaded(workspace):
    code = "import sys; from imgcls.cli import train_command; from imgcls.commands import predict_command; " \
           "print(train_command(['--config', 'mine.yaml']), predict_command(['/no/run', 'a.png']), " \
           "'torch' in sys.modules)"
    assert workspace.python(code, fresh=True).split() == ["1", "1", "False"]


def test_files_overrides_and_runs_reach_train(monkeypatch, tmp_path):
    "Several files are a list, one is itself; what was not given is not passed."
    calls = []
    pipeline = importlib.import_module("imgcls.pipeline")
    monkeypatch.setattr(pipeline, "train", lambda config, *overrides, **more: calls.append((config, overrides, more)))
    monkeypatch.chdir(tmp_path)
    for name in ("a.yaml", "b.yaml"): (tmp_path/name).write_text("")
    for words in ("--config a.yaml", "--config a.yaml b.yaml lr=0.1 --step_size 3", "--config a.yaml --config b.yaml",
                  "--retrain base --name new --optimizer.type=adamw", "--resume base"):
        assert called("imgcls-train", *words.split()) == 0
    same = {"resume": None, "own": None}
    assert calls == [("a.yaml", (), same), (["a.yaml", "b.yaml"], ("step_size=3", "lr=0.1"), same),
                     (["a.yaml", "b.yaml"], (), same),
                     (None, ("optimizer.type=adamw",), {"resume": None, "own": {"name": "new"}, "retrain": "base"}),
                     (None, (), same | {"resume": "base"})]
    del calls[:]
    for words in ("--resume a --retrain b", "--print_config --resume a", "--lr", "--lr 1 lr=2", "loose", "",
                  "--lr 1 --lr 2", "--name a --name b", "--no_pretrained"):
        assert called("imgcls-train", *words.split()) == 2
    for words in (["--retrain", ""], ["--name", ""], ["--config", ""], ["--lr", " "], ["lr="], ["--loss.type", ""]):
        assert called("imgcls-train", *words) == 2 and not calls, words
    assert called("imgcls-predict", "base", "a.png", "--out", "") == 2


def test_config_and_keys_are_printed(capsys):
    assert called("imgcls-train", "--config", "digits", "--print_config", "--lr", "0.5", "size=24") == 0
    said = capsys.readouterr().out
    assert re.search(r"^  lr: 0.5 ", said, re.M) and said.count("resize: [24, 24]") == 3
    assert called("imgcls-train", "--help", "all") == 0
    assert re.search(r"^  optimizer.weight_decay = 0.0 +pull towards zero", capsys.readouterr().out, re.M)


def test_an_error_is_a_line_and_a_traceback_on_demand(capsys):
    words = ["--config", "digits", "--lr", "fast", "--print_config"]
    assert called("imgcls-train", *words) == 1
    line = "imgcls-train: optimizer.lr: must be a number. Got 'fast' (str)."
    assert capsys.readouterr().err.strip() == line
    assert called("imgcls-train", *words, "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def in_terminal(folder: Path, environment: dict[str, str], *command: str) -> tuple[int, str]:
    "A command in a terminal that becomes narrower at the second epoch, where somebody presses Ctrl-C."
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(folder)
        os.execvpe(command[0], command, environment)
    size = lambda columns: fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    size(100)
    said, end, pressed = b"", time.monotonic() + 200, False
    try:
        while time.monotonic() < end:
            if not select.select([terminal], [], [], 1)[0]: continue
            try: part = os.read(terminal, 1 << 16)
            except OSError: break           # nobody has the other end any more
            if not part: break
            said += part
            if b"epoch 2/" in said and not pressed:
                size(40)
                os.write(terminal, b"\x03")
                pressed = True
        else: os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.decode()
    finally: os.close(terminal)


def test_training_in_a_terminal(workspace):
    environment = {key: value for key, value in workspace.environment.items()
                   if key not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")} | {"TERM": "xterm"}
    train = str(Path(sys.executable).parent/"imgcls-train")
    workspace.few_digits()
    code, said = in_terminal(workspace.folder, environment, train, "--config", "digits", "--architecture", "tiny_net",
                             "--size", "16", "--num_epochs", "40", "--name", "seen")
    assert code == 130, said
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    assert "━" in plain and re.search(r"epoch 1/40 ━+.? ?━* *\d+/7 ", plain), plain
    assert re.search(r"INFO +epoch 1/40: train loss", plain), plain                     # lines of the log are whole
    assert "Traceback" not in plain and "imgcls-train --resume seen" in " ".join(plain.split()), plain
    assert said.rindex("\x1b[?25h") > said.rfind("\x1b[?25l")                              # the cursor is there
