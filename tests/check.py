"""Everything that must hold before a change lands: what `make test` runs, and the two minutes of `make quick`.

Each check prints what it found; the last line counts them. `python tests/check.py ruff notebooks` runs some.
"""
import hashlib
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
ENV = dict(os.environ, PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}", MPLBACKEND="agg",
           OMP_NUM_THREADS="1", MKL_NUM_THREADS="1",    # notebooks run side by side
           PYTHONFAULTHANDLER="1")                      # what hangs says where, before it is ended
LIMITS = {"nbdev-test": 1800, "python": 1800}           # seconds; nothing may hang
MINUTES = 600                                           # seconds for every other command


def run(*command: str) -> bool:
    "Run a command of this environment; its output is shown."
    process = subprocess.Popen([str(BIN/command[0]), *command[1:]], cwd=ROOT, env=ENV, start_new_session=True)
    limit = LIMITS.get(command[0], MINUTES)
    try: return process.wait(limit) == 0
    except subprocess.TimeoutExpired: print(f"  {command[0]} has not ended in {limit} s; where it is:", flush=True)
    finally: end(process)
    return False


def end(process: subprocess.Popen) -> None:
    "End what is left of a process and of all that it has started; Python prints where it was."
    for number in (signal.SIGABRT, signal.SIGKILL):
        if process.poll() is None:
            with suppress(ProcessLookupError): os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired): process.wait(10)


def unchanged(*command: str) -> bool:
    "Does a command leave every notebook and module as it is?"
    def snapshot() -> dict[Path, str]:
        files = [f for pattern in ("nbs/**/*.ipynb", "imgcls/*.py") for f in ROOT.glob(pattern)]
        return {f: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    before = snapshot()
    done = run(*command)
    after = snapshot()
    changed = sorted(f for f in before | after if before.get(f) != after.get(f))
    for file in changed: print(f"  {command[0]} changed {file.relative_to(ROOT)}: commit what it wrote")
    return done and not changed


def changed_notebooks() -> list[str]:
    "Notebooks that differ from the last commit; where none does, those that the last commit changed."
    def asked(*command: str) -> list[str]:
        done = subprocess.run(["git", *command, "--", "nbs"], cwd=ROOT, capture_output=True, text=True, timeout=60)
        return [line for line in done.stdout.splitlines() if line.endswith(".ipynb") and (ROOT/line).is_file()]
    now = asked("diff", "--name-only", "HEAD") + asked("ls-files", "--others", "--exclude-standard")
    return sorted(set(now or asked("diff", "--name-only", "HEAD~1", "HEAD")))


def run_changed() -> bool:
    "The notebooks at hand, as far as they fit into the time; those that don't are named."
    names = [Path(name).stem for name in changed_notebooks() if "/benchmarks/" not in name]
    if not names: print("  no notebook has changed")
    late = time.monotonic() + QUICK
    for i, name in enumerate(names):
        if time.monotonic() > late:
            print(f"  no time for {', '.join(names[i:])}: make test runs them")
            return True
        if not run("nbdev-test", "--file-re", f"^{name}[.]ipynb$", "--do-print", "--n-workers", "0"): return False
    return True


QUICK = 75              # seconds for the notebooks of `make quick`, beside the one that runs then

CHECKS = {
    "clean": lambda: unchanged("nbdev-clean"),
    "export": lambda: unchanged("nbdev-export"),
    "ruff": lambda: run("ruff", "check", "nbs", "tests", "imgcls"),
    "notebooks": lambda: run("nbdev-test", "--n-workers", "2", "--do-print", "--skip-folder-re", "^benchmarks$"),
    "processes": lambda: run("python", "-m", "pytest", "tests", "-n", "3", "--dist", "loadfile"),
    "site": lambda: run("python", "tests/staged.py"),
}
QUICK_CHECKS = {
    "export": CHECKS["export"],
    "ruff": CHECKS["ruff"],
    "structure": lambda: run("python", "-m", "pytest", "tests/test_structure.py"),
    "changed": run_changed,
}


def main(names: list[str]) -> int:
    "Run the checks; the number that failed."
    failed, checks = [], CHECKS | QUICK_CHECKS
    names = [*QUICK_CHECKS] if names == ["quick"] else names or [*CHECKS]
    for name in names:
        started = time.monotonic()
        print(f"== {name}", flush=True)
        ok = checks[name]()
        print(f"-- {name}: {'ok' if ok else 'FAILED'} in {time.monotonic() - started:.0f} s", flush=True)
        if not ok: failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all is well")
    print(f"{len(names) - len(failed)} passed, {len(failed)} failed")
    return len(failed)


if __name__ == "__main__": sys.exit(min(main(sys.argv[1:]), 1))
