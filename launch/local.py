#!/usr/bin/env python3
r"""Run darl_jax on this machine, in a virtual environment that is made when it is missing.

    python3 launch/local.py [--extra NAME] [--dry-run] [--processes N] [--restarts N] \
        train --config=FILE --workdir=FOLDER ...
    python3 launch/local.py [--extra NAME] [--dry-run] plan --config=FILE --topology=NAME ...
    python3 launch/local.py [--extra NAME] [--dry-run] evaluate --checkpoint=WORKDIR ...
    python3 launch/local.py [--extra NAME] [--dry-run] sample --checkpoint=WORKDIR --output=DIR ...
    python3 launch/local.py [--extra NAME] [--dry-run] export --checkpoint=WORKDIR --format=NAME ...
    python3 launch/local.py [--extra NAME] [--dry-run] test [PYTEST ARGUMENTS ...]
    python3 launch/local.py [--extra NAME] [--dry-run] install

What follows the program's name reaches it untouched, and so do signals; its exit code is this
command's. All but `test` stay in your current folder; `test` runs in the repository's root, so the
paths that it is given are those of the repository. `install` stops once the environment is there,
for a machine whose compute nodes have no network.

`--processes N` trains with N processes that share this machine's GPUs (processes.py); `--restarts
N` starts training again, up to N times, after a crash or an interruption that was not meant for
this command, but not after bad input (exit code 2) or a diverged run (3).

The environment is .venv in the repository's root, or the folder that the environment variable
DARL_JAX_VENV names. It holds the versions that requirements.txt pins, and is made anew when
requirements.txt or setup.py change, or when an installation was interrupted.
"""

import argparse
import hashlib
import importlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

# Before anything that an older Python cannot run, so that its user reads this and no traceback.
if sys.version_info < (3, 11):  # noqa: UP036 - `python3` is whatever the machine has
    sys.exit(
        f"darl_jax needs Python 3.11 or newer, and this is Python {platform.python_version()} "
        f"({sys.executable}). "
        "Start it with a newer one, for example: python3.12 launch/local.py ..."
    )

try:
    import fcntl
except ImportError:
    sys.exit("darl_jax runs on Linux and macOS; on Windows, use WSL (the Linux inside Windows).")

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {
    "train": "darl_jax.train",
    "evaluate": "darl_jax.evaluate",
    "plan": "darl_jax.plan",
    "sample": "darl_jax.sample",
    "export": "darl_jax.export",
    "test": "pytest",
}
COMMANDS = (*PROGRAMS, "install")
EXTRAS = ("gpu", "tpu", "buckets")
STAMP = "darl_jax.json"
LOG = "install.log"
SPACE_NEEDED = "about 2 GB, with --extra gpu 8 GB"

# What pip and venv print when something is wrong outside, and what to do about it. The first
# match counts: without a network pip ends in "No matching distribution found" too.
ADVICE = (
    (
        ("ensurepip is not available", "No module named venv", "No module named ensurepip"),
        "This Python lacks its venv module. On Debian and Ubuntu: sudo apt install python3-venv",
    ),
    (
        ("No space left on device", "Disk quota exceeded"),
        f"The disk is full. The environment takes {SPACE_NEEDED}; make room, or set "
        "DARL_JAX_VENV to a folder on another disk (and TMPDIR, where pip unpacks).",
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED", "SSLError"),
        "The package registry's certificate was not accepted. Behind a proxy that has its own, "
        "set PIP_CERT to the file with that certificate.",
    ),
    (
        (
            "NewConnectionError",
            "NameResolutionError",
            "ConnectTimeoutError",
            "ReadTimeoutError",
            "ProxyError",
            "Connection refused",
            "Network is unreachable",
            "Temporary failure in name resolution",
        ),
        "The package registry was not reached. Check the network; behind a proxy set HTTPS_PROXY, "
        "with a mirror of your own set PIP_INDEX_URL.",
    ),
    (
        ("No matching distribution found", "requires a different Python"),
        "The pinned versions exist for Python 3.11 to 3.14 on Linux (x86-64, Arm) and on macOS "
        "(Apple silicon); this is Python "
        f"{platform.python_version()} on {platform.system()} ({platform.machine()}).",
    ),
)


class InstallationError(Exception):
    """The environment could not be made; the message is for the user."""


def environment_folder() -> Path:
    """Where the virtual environment is or will be."""
    return Path(os.environ.get("DARL_JAX_VENV") or ROOT / ".venv").absolute()


def fingerprint(venv: Path) -> str:
    """Hash of what an installation depends on; its scripts and links hold absolute paths."""
    digest = hashlib.sha256(f"{ROOT}\0{venv}".encode())
    for name in ("requirements.txt", "setup.py"):
        digest.update(b"\0" + (ROOT / name).read_bytes())
    return digest.hexdigest()


def read_stamp(venv: Path) -> dict[str, Any] | None:
    """What the last installation wrote: {} when it did not end, None when none ever began."""
    try:
        return json.loads((venv / STAMP).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def why_install(venv: Path, extras: set[str]) -> str | None:
    """Why the environment must be made, or None when it is as it should be.

    Raises:
      InstallationError: the folder holds something that this script did not make.
    """
    if not venv.exists() or (venv.is_dir() and not any(venv.iterdir())):
        return "there is no environment yet"
    stamp = read_stamp(venv) if venv.is_dir() else None
    if stamp is None:
        raise InstallationError(
            f"{venv} was not made by this script, which therefore leaves it alone. Move it away "
            "or set DARL_JAX_VENV to another folder, then start again. To use that environment "
            "as it is: bin/python -m darl_jax.train ..."
        )
    if not stamp.get("fingerprint"):
        return "the last installation did not end"
    if stamp["fingerprint"] != fingerprint(venv):
        return "requirements.txt or setup.py changed, or the folder was moved"
    if not (venv / "bin" / "python").exists():
        return "the Python that it was made with is gone"
    missing = extras - set(stamp["extras"])
    return f"it lacks {', '.join(sorted(missing))}" if missing else None


def installation_steps(venv: Path, extras: set[str]) -> list[tuple[str, list[str]]]:
    """(what the user reads, the command) for each step of an installation from nothing."""
    pins = str(ROOT / "requirements.txt")
    packages = sum(1 for line in Path(pins).read_text().splitlines() if "==" in line)
    target = f"{ROOT}[{','.join(sorted(extras))}]" if extras else str(ROOT)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--no-input", "install"]
    # Without build isolation the pinned setuptools builds, where pip would take the newest.
    build = ["--disable-pip-version-check", "--no-build-isolation"]
    return [
        (f"creating {venv}", [sys.executable, "-m", "venv", str(venv)]),
        ("installing what builds packages", [*pip, *build, "-c", pins, "setuptools"]),
        (f"installing {packages} pinned packages", [*pip, *build, "-r", pins]),
        (
            " and ".join(["installing darl_jax", *sorted(extras)]),
            [*pip, *build, "-c", pins, "-e", target],
        ),
    ]


def run_step(message: str, command: list[str], log_file: Path) -> None:
    """Runs one command with its output in `log_file`.

    Raises:
      InstallationError: the command failed; the message ends with what it said and what to do.
    """
    say(message)
    start = time.monotonic()
    with log_file.open("a") as log:
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        ).returncode
    if code == 0:
        say(f"  done in {time.monotonic() - start:.0f} s")
        return
    output = log_file.read_text(errors="replace")
    raise InstallationError(
        "\n".join(
            [
                f"{message} failed (exit code {code}). The end of its output:",
                *(f"    {line}" for line in output.splitlines()[-15:]),
                f"All of it is in {log_file}.",
                *advice(output),
            ]
        )
    )


def advice(output: str) -> list[str]:
    """What to do about a failure that printed `output`: one sentence, or none that we know."""
    for signs, sentence in ADVICE:
        if any(sign in output for sign in signs):
            return [sentence]
    return []


def ensure_environment(venv: Path, extras: set[str]) -> None:
    """Makes the environment from nothing unless it is complete, up to date and has `extras`.

    Raises:
      InstallationError: it could not be made.
    """
    reason = why_install(venv, extras)
    if reason is None:
        return
    venv.mkdir(parents=True, exist_ok=True)
    # The stamp exists from the first moment, so that whatever happens the folder is known as ours.
    with (venv / STAMP).open("a+") as stamp:
        lock(stamp)
        if why_install(venv, extras) is None:  # another start did all of it meanwhile
            return
        say(f"making the Python environment: {reason}")
        # An environment that had the GPU's packages keeps them when it is made anew.
        extras = extras | set((read_stamp(venv) or {}).get("extras", []))
        write_stamp(stamp, {"fingerprint": "", "extras": sorted(extras)})
        for entry in venv.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != STAMP:
                entry.unlink()
        wanted = fingerprint(venv)
        for message, command in installation_steps(venv, extras):
            run_step(message, command, venv / LOG)
        write_stamp(stamp, {"fingerprint": wanted, "extras": sorted(extras)})


def lock(file: TextIO) -> None:
    """Waits until no other start is installing; the lock ends with the file or the process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another installation of this environment to end")
        fcntl.flock(file, fcntl.LOCK_EX)


def write_stamp(file: TextIO, content: dict[str, Any]) -> None:
    """Replaces the content of the open and locked stamp."""
    file.truncate(0)
    file.write(json.dumps(content))
    file.flush()
    os.fsync(file.fileno())


def say(message: str) -> None:
    """Prints a line about the installation, apart from what the program prints on stdout."""
    print(f"[darl_jax] {message}", file=sys.stderr, flush=True)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Splits the command line at the command's name: our options before it, the program's after."""
    parser = argparse.ArgumentParser(
        prog="launch/local.py",
        description=__doc__.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--extra NAME] [--dry-run] [--processes N] [--restarts N] "
        "{train,evaluate,plan,sample,export,test,install} ...",
    )
    parser.add_argument(
        "--extra",
        action="append",
        default=[],
        choices=EXTRAS,
        help="also install what NVIDIA GPUs (gpu), TPUs (tpu) or gs:// and "
        "s3:// paths (buckets) need; needed once, for the environment keeps it",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be done, and do nothing"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="how many processes train together (default: 1)"
    )
    parser.add_argument(
        "--restarts", type=int, default=0, help="how often to start again (default: 0)"
    )
    parser.add_argument("command", choices=COMMANDS, help="what to run; see above")
    end = next((i for i, word in enumerate(arguments) if word in COMMANDS), len(arguments))
    options = parser.parse_args(arguments[: end + 1])
    rest = arguments[end + 1 :]
    if rest and options.command == "install":
        parser.error(f"install takes no further arguments, and got: {shlex.join(rest)}")
    if options.processes < 1 or options.restarts < 0:
        parser.error("--processes must be 1 or more, and --restarts 0 or more")
    if supervised(options) and options.command != "train":
        parser.error(f"--processes and --restarts are for train, not for {options.command}")
    return options, rest


def supervised(options: argparse.Namespace) -> bool:
    """Whether the program needs somebody who watches it."""
    return options.processes > 1 or options.restarts > 0


def supervisor() -> ModuleType:
    """The module of this folder that watches processes, from wherever this script is started."""
    sys.path.insert(0, str(ROOT))
    return importlib.import_module("launch.processes")


def print_plan(venv: Path, extras: set[str], commands: list[str], folder: Path) -> None:
    """Prints what a start would do, as commands for a shell."""
    reason = why_install(venv, extras)
    if reason is None:
        print(f"{venv} is complete.")
    else:
        print(f"Would make the Python environment, because {reason}:")
        for _, command in installation_steps(venv, extras):
            print(f"  {shlex.join(command)}")
    if commands:
        print("\n  ".join([f"Would run in {folder}:", *commands]))


def main(arguments: list[str]) -> None:
    """Makes the environment if it must, then becomes the program, or watches it."""
    options, rest = parse(arguments)
    venv = environment_folder()
    extras = set(options.extra)
    module = PROGRAMS.get(options.command)
    program = [str(venv / "bin" / "python"), "-m", module, *rest] if module else []
    folder = ROOT if options.command == "test" else Path.cwd()
    try:
        commands = [shlex.join(program)] if program else []
        if supervised(options):
            commands = supervisor().plan(program, options.processes, options.restarts)
        if options.dry_run:
            print_plan(venv, extras, commands, folder)
            return
        ensure_environment(venv, extras)
    except InstallationError as error:
        sys.exit(f"[darl_jax] {error}")
    except ValueError as error:
        say(str(error))
        sys.exit(2)
    except OSError as error:
        # venv and pip report for themselves; this is a full disk or a read-only folder.
        sys.exit("\n".join([f"[darl_jax] the environment failed: {error}", *advice(str(error))]))
    except KeyboardInterrupt:
        say("interrupted; the next start begins the installation again")
        sys.exit(130)
    if not program:
        say(f"the environment is ready: {venv}")
        return
    os.chdir(folder)
    if supervised(options):
        sys.exit(supervisor().supervise(program, options.processes, options.restarts, say))
    sys.stdout.flush()
    os.execv(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
