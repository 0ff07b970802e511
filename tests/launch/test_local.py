"""launch/local.py: what it would do, when it installs anew, and what it says when it cannot."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "launch" / "local.py"
SUPERVISOR = ROOT / "launch" / "processes.py"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("launch_local", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


local = load(LAUNCHER)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose packages are two programs that tell how they were started."""
    root = tmp_path / "repository"
    for folder in ("launch", "darl_jax", "pytest"):
        (root / folder).mkdir(parents=True)
    shutil.copy(LAUNCHER, root / "launch")
    shutil.copy(SUPERVISOR, root / "launch")
    tell = (
        "import json, os, sys\n"
        "print(json.dumps([sys.executable, sys.argv[1:], os.getcwd()]))\n"
        "sys.exit(7)\n"
    )
    (root / "darl_jax" / "train.py").write_text(tell)
    (root / "pytest" / "__main__.py").write_text(tell)
    (root / "requirements.txt").write_text("# none\na==1\nb==2\n")
    (root / "setup.py").write_text("# nothing\n")
    return root


def start(
    repository: Path,
    *arguments: str,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key != "DARL_JAX_VENV"}
    return subprocess.run(
        [sys.executable, str(repository / "launch" / "local.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd or repository,
        env=inherited | {"PYTHONPATH": str(repository)} | (environment or {}),
    )


def complete(repository: Path, extras: tuple[str, ...] = ()) -> Path:
    """A .venv as a finished installation leaves it, without packages."""
    folder = repository / ".venv"
    venv.create(folder, with_pip=False, symlinks=True)
    stamp = {
        "fingerprint": load(repository / "launch" / "local.py").fingerprint(folder),
        "extras": list(extras),
    }
    (folder / "darl_jax.json").write_text(json.dumps(stamp))
    return folder


def test_dry_run_prints_each_step_and_changes_nothing(repository: Path) -> None:
    before = sorted(repository.rglob("*"))
    result = start(repository, "--extra", "gpu", "--dry-run", "train", "--config=c.py", "--x=a b")
    assert result.returncode == 0, result.stderr
    python = repository / ".venv" / "bin" / "python"
    assert "there is no environment yet" in result.stdout
    assert f"-m venv {repository}/.venv" in result.stdout
    assert f"-r {repository}/requirements.txt" in result.stdout
    assert f"-e '{repository}[gpu]'" in result.stdout
    assert f"{python} -m darl_jax.train --config=c.py '--x=a b'" in result.stdout
    assert sorted(repository.rglob("*")) == before


def test_train_gets_its_arguments_folder_and_exit_code_untouched(
    repository: Path, tmp_path: Path
) -> None:
    folder = complete(repository)
    arguments = ["--config=configs/digits.py", "--help", "--dry-run", "--", "test", "a b", ""]
    result = start(repository, "train", *arguments, cwd=tmp_path)
    assert result.returncode == 7, result.stderr
    program, received, cwd = json.loads(result.stdout)
    assert program == str(folder / "bin" / "python")
    assert received == arguments
    assert cwd == str(tmp_path)
    assert result.stderr == ""


def test_several_processes_run_in_your_folder_and_give_their_exit_code(
    repository: Path, tmp_path: Path
) -> None:
    folder = complete(repository)
    environment = {"JAX_PLATFORMS": "cpu"}
    options = ["--processes", "2", "--restarts", "1"]
    result = start(repository, *options, "train", "--x=a b", cwd=tmp_path, environment=environment)
    assert result.returncode == 7, result.stderr
    told = [str(folder / "bin" / "python"), ["--x=a b"], str(tmp_path)]
    lines = result.stdout.splitlines()
    assert len(lines) == 4  # two processes, and once more after the crash
    assert [json.loads(line.removeprefix("[1] ")) for line in lines] == [told] * 4
    assert sum(line.startswith("[1] ") for line in lines) == 2
    assert "restart 1 of 1" in result.stderr


def test_a_dry_run_shows_what_each_process_is_told(repository: Path) -> None:
    complete(repository)
    result = start(
        repository,
        *("--dry-run", "--processes", "2", "--restarts", "3", "train", "--x=a b"),
        environment={"CUDA_VISIBLE_DEVICES": "4,5,6,7", "JAX_PLATFORMS": ""},
    )
    assert result.returncode == 0, result.stderr
    place = "JAX_COORDINATOR_ADDRESS=localhost:FREE_PORT JAX_NUM_PROCESSES=2 JAX_PROCESS_ID="
    program = f"{repository}/.venv/bin/python -m darl_jax.train '--x=a b'"
    assert f"{place}0 CUDA_VISIBLE_DEVICES=4,5 {program}\n" in result.stdout
    assert f"{place}1 CUDA_VISIBLE_DEVICES=6,7 {program}\n" in result.stdout
    assert "3 times at most" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--processes", "0", "train"], {}, "--processes must be 1 or more"),
        (["--restarts", "1", "test"], {}, "are for train, not for test"),
        (
            ["--processes", "3", "train"],
            {"CUDA_VISIBLE_DEVICES": "0,1", "JAX_PLATFORMS": ""},
            "2 GPUs (0,1) cannot be split equally among 3 processes",
        ),
    ],
)
def test_wrong_numbers_of_processes_are_said_before_anything_is_installed(
    repository: Path, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    result = start(repository, *arguments, environment=environment)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (repository / ".venv").exists()


def test_test_runs_pytest_in_the_repository_wherever_it_is_started(
    repository: Path, tmp_path: Path
) -> None:
    complete(repository)
    result = start(repository, "test", "-k", "not slow", cwd=tmp_path)
    assert result.returncode == 7, result.stderr
    _, received, cwd = json.loads(result.stdout)
    assert received == ["-k", "not slow"]
    assert cwd == str(repository)


def test_an_environment_is_made_anew_exactly_when_it_does_not_fit(repository: Path) -> None:
    launcher = load(repository / "launch" / "local.py")
    folder = complete(repository, extras=("gpu",))
    stamp = folder / "darl_jax.json"
    assert launcher.why_install(folder, set()) is None
    assert launcher.why_install(folder, {"gpu"}) is None
    assert launcher.why_install(folder, {"gpu", "buckets"}) == "it lacks buckets"

    for name in ("requirements.txt", "setup.py"):
        text = (repository / name).read_text()
        (repository / name).write_text(text + "c==3\n")
        assert "changed" in launcher.why_install(folder, set())
        (repository / name).write_text(text)
    assert launcher.why_install(folder, set()) is None

    finished = stamp.read_text()
    for unfinished in ("", finished[:20], '{"fingerprint": "", "extras": []}'):
        stamp.write_text(unfinished)
        assert launcher.why_install(folder, set()) == "the last installation did not end"
    stamp.write_text(finished)

    (folder / "bin" / "python").unlink()
    assert "Python" in launcher.why_install(folder, set())

    moved = repository / "elsewhere"
    folder.rename(moved)
    assert "moved" in launcher.why_install(moved, set())


def test_an_interrupted_installation_is_redone_from_nothing(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = load(repository / "launch" / "local.py")
    folder = complete(repository, extras=("gpu",))
    leftover = folder / "lib" / "leftover"
    leftover.write_text("of the interrupted installation")
    (repository / "requirements.txt").write_text("a==2\n")

    def interrupt(message: str, command: list[str], log_file: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launcher, "run_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        launcher.ensure_environment(folder, set())
    assert launcher.why_install(folder, set()) == "the last installation did not end"
    assert not leftover.exists()

    steps: list[list[str]] = []

    def record(message: str, command: list[str], log_file: Path) -> None:
        assert launcher.read_stamp(folder)["fingerprint"] == ""
        steps.append(command)
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / "python").touch()

    monkeypatch.setattr(launcher, "run_step", record)
    launcher.ensure_environment(folder, set())
    assert launcher.why_install(folder, {"gpu"}) is None, "the GPU's packages were forgotten"
    assert steps[-1][-1] == f"{repository}[gpu]"
    launcher.ensure_environment(folder, set())
    assert len(steps) == len(launcher.installation_steps(folder, set()))


def test_two_first_starts_at_once_install_once(repository: Path) -> None:
    """The second waits for the first one's lock and finds the environment complete."""
    launcher = load(repository / "launch" / "local.py")
    folder = complete(repository)
    finished = (folder / "darl_jax.json").read_text()
    with (folder / "darl_jax.json").open("a+") as stamp:
        launcher.lock(stamp)
        launcher.write_stamp(stamp, {"fingerprint": "", "extras": []})
        environment = os.environ | {"PYTHONPATH": str(repository)}
        environment.pop("DARL_JAX_VENV", None)
        second = subprocess.Popen(
            [sys.executable, str(repository / "launch" / "local.py"), "train"],
            cwd=repository,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert second.stderr is not None
        assert "waiting" in second.stderr.readline()
        launcher.write_stamp(stamp, json.loads(finished))
    output, errors = second.communicate(timeout=60)
    assert second.returncode == 7
    assert json.loads(output)[0] == str(folder / "bin" / "python")
    assert errors == ""


def test_a_foreign_environment_is_left_alone(repository: Path) -> None:
    (repository / ".venv").mkdir()
    (repository / ".venv" / "precious").write_text("not ours")
    result = start(repository, "train")
    assert result.returncode == 1
    assert "was not made by this script" in result.stderr
    assert [path.name for path in (repository / ".venv").iterdir()] == ["precious"]


def test_the_environment_variable_moves_the_environment(repository: Path, tmp_path: Path) -> None:
    result = start(
        repository, "--dry-run", "test", environment={"DARL_JAX_VENV": str(tmp_path / "other")}
    )
    assert f"{tmp_path}/other/bin/python -m pytest" in result.stdout
    assert f"{repository}/.venv" not in result.stdout


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("The virtual environment was not created because ensurepip is not available", "apt"),
        ("ERROR: [Errno 28] No space left on device", "disk is full"),
        ("NewConnectionError(...)\nERROR: No matching distribution found for jax", "network"),
        ("ERROR: No matching distribution found for jax==0.10.2", "Python 3.11 to 3.14"),
    ],
)
def test_a_failed_step_shows_the_end_of_its_output_and_what_to_do(
    tmp_path: Path, output: str, expected: str
) -> None:
    script = f"print('first line\\n' * 50); print({output!r}); raise SystemExit(3)"
    with pytest.raises(local.InstallationError) as caught:
        local.run_step("installing", [sys.executable, "-c", script], tmp_path / "log")
    message = str(caught.value)
    assert message.startswith("installing failed (exit code 3)")
    assert output.splitlines()[-1] in message
    assert expected in message.splitlines()[-1]
    assert len(message.splitlines()) < 20


def test_an_old_python_is_told_which_one_is_needed() -> None:
    source = LAUNCHER.read_text()
    ast.parse(source, feature_version=(3, 7))
    pretend = (
        "import platform, sys\n"
        "sys.version_info = (3, 8, 18)\n"
        "platform.python_version = lambda: '3.8.18'\n"
        f"exec(compile({source!r}, 'local.py', 'exec'), {{'__name__': '__main__'}})\n"
    )
    result = subprocess.run([sys.executable, "-c", pretend], capture_output=True, text=True)
    assert result.returncode == 1
    assert "needs Python 3.11 or newer, and this is Python 3.8.18" in result.stderr
    assert "Traceback" not in result.stderr


def test_pins_satisfy_the_bounds_of_setup_py() -> None:
    """All but the accelerators' and buckets' extras, which requirements.txt leaves out."""
    pinned = [
        Requirement(line)
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    pins = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pinned}
    quoted = re.findall(r'^    +"([^"]+)",', (ROOT / "setup.py").read_text(), re.MULTILINE)
    requirements = [Requirement(text) for text in quoted]
    assert len(requirements) > 20
    for requirement in requirements:
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {">=", "<"}, f"{requirement} has no lower or no upper bound"
        version = pins[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"{requirement} against the pin {version}"
