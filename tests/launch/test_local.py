"""launch/local.py: what it passes on, and when it installs anew."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "launch" / "local.py"

# Both the programs and the pip of a repository that is a stand-in.
PROGRAM = """
import json, os, sys
print(json.dumps([sys.argv[1:], os.getcwd()]))
sys.exit(7)
"""
# A venv module that makes a "python" which writes down how pip was called.
VENV = """
import os, pathlib, sys
folder = pathlib.Path(sys.argv[-1]) / "bin"
folder.mkdir(parents=True)
(folder / "python").write_text(
    '#!/bin/bash\\n'
    f'[[ $2 == pip ]] && {{ echo "$*" >>{os.environ["CALLS"]}; exit ${{FAIL:-0}}; }}\\n'
    f'exec {sys.executable} "$@"\\n')
(folder / "python").chmod(0o755)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    for folder in ("launch", "darl_jax/figures", "pytest"):
        (root / folder).mkdir(parents=True)
    for name in ("local.py", "processes.py"):
        shutil.copy(ROOT / "launch" / name, root / "launch")
    for program in ("darl_jax/train.py", "darl_jax/figures/curves.py", "pytest/__main__.py"):
        (root / program).write_text(PROGRAM)
    (root / "pytest" / "__init__.py").touch()
    (root / "venv.py").write_text(VENV)
    (root / "requirements.txt").write_text("a==1\n")
    (root / "setup.py").write_text("# nothing\n")
    return root


def start(
    repository: Path, *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key != "DARL_JAX_VENV"}
    return subprocess.run(
        [sys.executable, str(repository / "launch" / "local.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd or repository,
        env=inherited
        | {"PYTHONPATH": str(repository), "CALLS": str(repository / "calls")}
        | environment,
    )


def installations(repository: Path) -> list[str]:
    """What pip was asked to install from this repository, over all starts."""
    path = repository / "calls"
    calls = path.read_text().splitlines() if path.exists() else []
    return [call.split(" -e ")[1] for call in calls if " -e " in call]


def test_program_gets_its_arguments_folder_and_exit_code_untouched(repository, tmp_path):
    arguments = ["--config=configs/digits.py", "--help", "--extra", "--", "test", "a b", ""]
    for program, folder in (("train", tmp_path), ("figures.curves", tmp_path), ("test", None)):
        result = start(repository, program, *arguments, cwd=tmp_path)
        assert result.returncode == 7, result.stderr
        assert json.loads(result.stdout) == [arguments, str(folder or repository)]
    assert installations(repository) == [str(repository)]  # once
    result = start(repository, "no_such")
    assert result.returncode == 2 and "there is no program 'no_such'" in result.stderr


def test_several_processes_run_in_your_folder_and_give_their_exit_code(repository, tmp_path):
    options = ["--processes", "2", "--restarts", "1", "train", "--x=a b"]
    result = start(repository, *options, cwd=tmp_path, JAX_PLATFORMS="cpu")
    assert result.returncode == 7, result.stderr
    lines = result.stdout.splitlines()  # of two processes, and once more after the crash
    assert [json.loads(line.removeprefix("[1] ")) for line in lines] == [
        [["--x=a b"], str(tmp_path)]
    ] * 4
    assert sum(line.startswith("[1] ") for line in lines) == 2
    assert "restart 1 of 1" in result.stderr
    assert start(repository, "--restarts", "1", "test").returncode == 2


def test_environment_is_made_anew_exactly_when_it_does_not_fit(repository):
    plain = str(repository)
    expected = [plain]
    start(repository, "install")
    start(repository, "--extra", "gpu", "install")
    start(repository, "install")  # It has the extra.
    expected.append(f"{plain}[gpu]")
    assert installations(repository) == expected
    for name in ("requirements.txt", "setup.py"):
        (repository / name).write_text("b==2\n")
        start(repository, "install")
        expected.append(f"{plain}[gpu]")  # The extra stays.
        assert installations(repository) == expected
    (repository / "setup.py").write_text("c==3\n")
    failed = start(repository, "install", FAIL="1")
    assert failed.returncode == 1 and "about 2 GB of disk" in failed.stderr
    start(repository, "install")
    assert installations(repository) == [*expected, f"{plain}[gpu]"]


def test_foreign_environment_is_left_alone(repository, tmp_path):
    (repository / ".venv").mkdir()
    (repository / ".venv" / "precious").write_text("not ours")
    result = start(repository, "train")
    assert result.returncode == 1
    assert "was not made by this script" in result.stderr
    assert [path.name for path in (repository / ".venv").iterdir()] == ["precious"]
    assert start(repository, "train", DARL_JAX_VENV=str(tmp_path / "other")).returncode == 7


def test_old_python_is_named_with_the_one_that_is_needed():
    source = LAUNCHER.read_text()
    ast.parse(source, feature_version=(3, 7))
    pretend = (
        "import sys\nsys.version_info, sys.version = (3, 8, 18), '3.8.18 (of old)'\n"
        f"exec(compile({source!r}, 'local.py', 'exec'), {{'__name__': '__main__'}})\n"
    )
    result = subprocess.run([sys.executable, "-c", pretend], capture_output=True, text=True)
    assert result.returncode == 1
    assert "needs Python 3.11 or newer" in result.stderr and "3.8.18" in result.stderr
    assert "Traceback" not in result.stderr


def test_pins_satisfy_the_bounds_of_setup_py():
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
