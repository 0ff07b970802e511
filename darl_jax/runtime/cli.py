"""Frame of every program: flags, exit codes, errors in one line, Ctrl-C."""

import contextlib
import logging as logging_lib
import os
import pathlib
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from darl_jax.runtime import cluster, signals
from darl_jax.runtime.memory import keep_freed_pages

EXIT_ERROR = 1  # something failed while it ran
EXIT_BAD_INPUT = 2  # a flag, config, dataset or checkpoint that cannot be used
EXIT_NOT_FINITE = 3  # training diverged
EXIT_INTERRUPTED = 75  # stopped and saved; EX_TEMPFAIL of sysexits.h: try again

# Errors of the input, which stay until a person changes it. Others of the file system may pass.
BAD_INPUT = (
    ValueError,
    ImportError,
    MemoryError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
# Errors that a person can mend: keys and files, a package that a bucket needs, memory.
USER_ERRORS = (ValueError, OSError, ImportError, MemoryError)


class _OrNone(flags.ArgumentParser):
    """Parser of a number, or of None for a key that may have no value."""

    def __init__(self, number: flags.ArgumentParser) -> None:
        self._number = number

    def parse(self, argument: Any) -> Any:
        """The number, or None."""
        return None if argument in (None, "None") else self._number.parse(argument)

    def flag_type(self) -> str:
        """The type's name in help texts."""
        return self._number.flag_type()


config_flags.register_flag_parser_for_type(int, _OrNone(flags.IntegerParser()))
config_flags.register_flag_parser_for_type(float, _OrNone(flags.FloatParser()))


def run(main: Callable[..., None], usage: str, *, arguments: bool = False) -> None:
    """Runs a program: parses its flags, and turns errors and Ctrl-C into one line and an exit code.

    `usage` is an example of a command line, for messages; `main` takes `arguments` that are no
    flags, if there may be any.
    """
    keep_freed_pages()
    logging_lib.getLogger("jax").setLevel(logging_lib.WARNING)  # INFO lists absent platforms.

    def guarded(argv: Sequence[str]) -> None:
        with (
            one_line_errors(EXIT_ERROR, OSError),
            one_line_errors(EXIT_BAD_INPUT, *BAD_INPUT),
            advice_on_devices(),
        ):
            main(*([argv[1:]] if arguments else []))

    with signals.handling((signal.SIGINT,), _interrupt):
        parser = flags_parser(usage, arguments=arguments)
        app.run(guarded, argv=with_saved_config(sys.argv), flags_parser=parser)


def _interrupt(number: int) -> None:
    signals.discard_unfinished()
    cluster.leave_together(128 + number, "interrupted by Ctrl-C")


@contextlib.contextmanager
def one_line_errors(code: int, *kinds: type[Exception]) -> Iterator[None]:
    """Turns errors into one line and an exit code; --verbosity=1 shows more."""
    try:
        yield
    except kinds as error:
        end(code, error)


def end(code: int, error: Exception) -> NoReturn:
    """Ends the program, and all processes of its run, with an error in one line."""
    logging.debug("This is where it happened:", exc_info=True)
    cluster.fail_together(code, f"error: {error}", error)
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(code)


@contextlib.contextmanager
def advice_on_devices() -> Iterator[None]:
    """Names the keys to change where there is no device, or one runs out of memory."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:  # which JAX raises for a missing platform
        try:
            jax.devices()
        except (RuntimeError, AssertionError) as reason:
            raise ValueError(
                f"JAX finds no device for JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}"
                f" ({str(reason).splitlines()[0] if str(reason) else 'it is not installed'}); "
                "install its packages, or unset it for the devices that are here"
            ) from error
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(
            f"a device has too little memory ({str(error).splitlines()[0]}). Lower "
            "config.batch_size, raise config.accumulation_steps or config.mesh.fsdp, or set "
            "config.model.remat to 'dots' or 'full'"
        ) from error


def flags_parser(usage: str, *, arguments: bool = False) -> Callable[[Sequence[str]], list[str]]:
    """Parser for `app.run`, with one line for an error in a flag or a config file; see `run`."""

    def parse(argv: Sequence[str]) -> list[str]:
        # ml_collections runs the config file and applies --config.key=value while it parses, so
        # whatever a config file raises is seen here.
        with one_line_errors(EXIT_BAD_INPUT, Exception):
            argv = [re.sub(r"^(--?config=)(~.*)", _in_home, argument) for argument in argv]
            path = _config_file(argv)
            try:
                rest = flags.FLAGS(argv)
            except SystemExit:  # absl's --help ends with 1
                sys.exit(0)
            except (AttributeError, KeyError) as error:
                raise ValueError(_unknown_key(error, argv, path)) from error
            except (flags.Error, NameError, ImportError, SyntaxError, TypeError) as error:
                raise ValueError(_in_config_file(error, path)) from error
            if len(rest) > 1 and not arguments:
                raise ValueError(f"{' '.join(rest[1:])} is not understood; usage: {usage}")
            config = flags.FLAGS["config"].value if path else ml_collections.ConfigDict()
            try:
                hasattr(config, "lock")  # ml_collections keeps an OSError of the file until here
            except OSError as error:
                raise error.__cause__ or error from None
            if not isinstance(config, ml_collections.ConfigDict):
                raise ValueError(
                    f"{path}: get_config() must return a ConfigDict, such as default_config(), not "
                    f"a {type(config).__name__}"
                )
        return rest

    return parse


def _in_home(match: re.Match[str]) -> str:
    """The flag with ~ replaced, which a shell does not do after an equals sign."""
    return match[1] + os.path.expanduser(match[2])


def _config_file(argv: Sequence[str]) -> str:
    """Path of the last --config=PATH or --config PATH, without the word after it."""
    path = _given(argv).get("config", "").split(":")[0]
    # Left to itself ml_collections says so over several lines, and later, when a key is read.
    if path and not pathlib.Path(path).is_file():
        raise ValueError(f"--config={path}: there is no such file; configs/ holds the project's")
    return path


def _unknown_key(error: BaseException, argv: Sequence[str], path: str) -> str:
    """Message with the argument; ml_collections names the unknown key and the nearest one."""
    while isinstance(error.args[0], Exception):
        error = error.args[0]
    message = " ".join(str(error.args[0]).split())
    for argument in argv:
        keys = argument.lstrip("-").split("=")[0].split(".")
        if keys[0] == "config" and any(f"'{key}'" in message for key in keys[1:]):
            return f"{argument}: there is no key {message}"
    return f"{path}: {message}"


def _in_config_file(error: BaseException, path: str) -> str:
    """The last line of an error, after the config file's line where it was raised there."""
    # ml_collections puts a whole traceback into some of its messages.
    text = "".join(traceback.format_exception(error)) + str(error)
    lines = re.findall(rf'File "[^"]*{re.escape(pathlib.Path(path).name)}", line (\d+)', text)
    message = str(error).strip().splitlines()[-1].removeprefix("ValueError: ")
    if "get_config() takes 0 positional arguments" in message:
        return f"{path} takes no word after a colon"
    if group := re.match(r"flag (--[\w.]+)(=.*): Failed to parse .* as a ConfigDict", message):
        return f"{group[1]}{group[2]}: this is a group of keys; set them as {group[1]}.KEY=VALUE"
    if "malformed node or string" in message:
        return f"{message.split(': ')[0]} is no Python value"
    return f"{path}, line {lines[-1]}: {message}" if path and lines else message


def _given(argv: Sequence[str]) -> dict[str, str]:
    """Values of flags as --name=value or --name value."""
    return {
        name: value if equals else following
        for argument, following in zip(argv, [*argv[1:], ""], strict=True)
        for name, equals, value in [argument.lstrip("-").partition("=")]
        if argument.startswith("-")
    }


def with_saved_config(argv: Sequence[str]) -> list[str]:
    """The arguments, with a checkpoint's own config where --checkpoint stands without --config."""
    given = _given(argv)
    if "config" in given or not given.get("checkpoint") or not {"config"} & set(flags.FLAGS):
        return list(argv)
    file = pathlib.Path(__file__).parents[1] / "interchange" / "saved_config.py"
    return [argv[0], f"--config={file}:{given['checkpoint']}", *argv[1:]]
