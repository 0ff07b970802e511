#!/usr/bin/env python3
r"""Runs a program on this machine, in a virtual environment that the first start makes.

    python3 launch/local.py [--extra NAME] [--processes N] [--restarts N] PROGRAM ARGUMENTS ...

PROGRAM is a module of darl_jax: train, evaluate, sample, export, plan, figures.curves and so on.
`test` runs pytest in the repository's root; `install` only makes the environment, for a machine
whose compute nodes have no network. Arguments and signals reach the program untouched, and its
exit code is this command's.

The environment is .venv in the repository's root, or the folder in the variable DARL_JAX_VENV. It
holds the versions that requirements.txt pins, and is made anew when requirements.txt or setup.py
change, or when an installation was interrupted.
"""

import argparse
import hashlib
import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

# Before anything that an older Python cannot run, so that its user gets no traceback.
if sys.version_info < (3, 11):  # noqa: UP036 - `python3` is whatever the machine has
    sys.exit(
        f"darl_jax needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Start "
        "it with a newer one, for example: python3.12 launch/local.py ..."
    )
try:
    import fcntl
except ImportError:
    sys.exit("darl_jax runs on Linux and macOS; on Windows use WSL (the Linux inside Windows)")

ROOT = Path(__file__).resolve().parents[1]
STAMP = "darl_jax.json"
ADVICE = """\
the environment is not complete: {command} ended with exit code {code}. It needs
  - about 2 GB of disk, 8 GB with --extra gpu (DARL_JAX_VENV names a folder elsewhere),
  - the package registry (HTTPS_PROXY behind a proxy, PIP_INDEX_URL for a mirror),
  - Python 3.11 to 3.14 with venv (on Debian and Ubuntu: sudo apt install python3-venv)."""


def install(venv: Path, extras: set[str]) -> None:
    """Makes the environment from nothing, unless it is complete, up to date and has the extras."""
    digest = hashlib.sha256(f"{ROOT}\0{venv}".encode())  # Its scripts hold absolute paths.
    for name in ("requirements.txt", "setup.py"):
        digest.update(b"\0" + (ROOT / name).read_bytes())
    if _is_complete(venv, digest.hexdigest(), extras):
        return
    if venv.exists() and any(venv.iterdir()) and not (venv / STAMP).exists():
        sys.exit(
            f"{venv} was not made by this script, which leaves it alone; move it away, or set "
            "DARL_JAX_VENV to another folder"
        )
    venv.mkdir(parents=True, exist_ok=True)
    with (venv / STAMP).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Another start may be installing.
        if _is_complete(venv, digest.hexdigest(), extras):
            return
        extras = extras | set(_stamp(venv).get("extras", []))
        _write_stamp(venv, {"extras": sorted(extras)})
        for entry in venv.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != STAMP:
                entry.unlink()
        python, pins = str(venv / "bin" / "python"), str(ROOT / "requirements.txt")
        # The pinned setuptools builds, where pip would take the newest.
        pip = [python, "-m", "pip", "--no-input", "--disable-pip-version-check", "-q", "install"]
        pip += ["--no-build-isolation", "-c", pins]
        project = f"{ROOT}[{','.join(sorted(extras))}]" if extras else str(ROOT)
        for command in (
            [sys.executable, "-m", "venv", str(venv)],
            [*pip, "setuptools"],
            [*pip, "-r", pins],
            [*pip, "-e", project],
        ):
            say(f"making {venv}: {shlex.join(command)}")
            # What pip prints is not the program's output.
            code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode
            if code:
                say(ADVICE.format(command=shlex.join(command), code=code))
                sys.exit(1)
        _write_stamp(venv, {"fingerprint": digest.hexdigest(), "extras": sorted(extras)})


def _is_complete(venv: Path, fingerprint: str, extras: set[str]) -> bool:
    stamp = _stamp(venv)
    whole = stamp.get("fingerprint") == fingerprint and (venv / "bin" / "python").exists()
    return whole and extras <= set(stamp["extras"])


def _stamp(venv: Path) -> dict[str, Any]:
    """Content that the last installation wrote; without fingerprint where it was interrupted."""
    try:
        return json.loads((venv / STAMP).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _write_stamp(venv: Path, content: dict[str, Any]) -> None:
    (venv / STAMP).write_text(json.dumps(content))


def say(message: str) -> None:
    """Prints a line apart from the program's output."""
    print(f"[darl_jax] {message}", file=sys.stderr, flush=True)


def main() -> None:
    """Makes the environment if it must, then becomes the program, or watches its processes."""
    parser = argparse.ArgumentParser(
        prog="launch/local.py",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--extra NAME] [--processes N] [--restarts N] PROGRAM ARGUMENTS ...",
    )
    parser.add_argument(
        "--extra", action="append", default=[], choices=("gpu", "tpu", "buckets"),
        help="also install the packages of NVIDIA GPUs, TPUs or gs:// and s3:// paths; they stay",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=int, default=1, help="processes that train together and share the GPUs"
    )
    parser.add_argument(
        "--restarts", type=int, default=0,
        help="starts after a crash or an interruption; none after exit codes 0, 2 and 3",
    )  # fmt: skip
    parser.add_argument("program", metavar="PROGRAM")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENTS")
    options = parser.parse_args()
    name, supervised = options.program, options.processes > 1 or options.restarts > 0
    if not (name in ("test", "install") or _file(name).is_file()):
        parser.error(f"there is no program {name!r}: no file {_file(name)}")
    if options.processes < 1 or options.restarts < 0 or (supervised and name != "train"):
        parser.error("--processes (1 or more) and --restarts (0 or more) are for train")
    venv = Path(os.environ.get("DARL_JAX_VENV") or ROOT / ".venv").absolute()
    try:
        install(venv, set(options.extra))
    except KeyboardInterrupt:
        say("interrupted; the next start begins the installation again")
        sys.exit(130)
    if name == "install":
        say(f"the environment is ready: {venv}")
        return
    if name == "test":
        os.chdir(ROOT)
    module = "pytest" if name == "test" else f"darl_jax.{name}"
    program = [str(venv / "bin" / "python"), "-m", module, *options.arguments]
    if supervised:
        sys.path.insert(0, str(ROOT))
        processes = importlib.import_module("launch.processes")
        sys.exit(processes.supervise(program, options.processes, options.restarts, say))
    os.execv(program[0], program)


def _file(program: str) -> Path:
    return ROOT / "darl_jax" / f"{program.replace('.', '/')}.py"


if __name__ == "__main__":
    main()
