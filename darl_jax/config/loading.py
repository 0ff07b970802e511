"""Loads an ml_collections ConfigDict as frozen dataclasses, or raises one clear error."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from darl_jax.config.schema import TrainConfig
from darl_jax.data import DATA
from darl_jax.evaluators import EVALUATORS
from darl_jax.methods import METHODS, MODELS
from darl_jax.training.optimizers import OPTIMIZERS


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key and the right value."""


def load(config: ml_collections.ConfigDict, *, begins: bool = True) -> TrainConfig:
    """The run that a config describes; if none begins with it, it may lack `init.checkpoint`.

    Raises:
      ConfigError: a key is unknown, missing or of the wrong type, or a value is out of its range.
    """
    values = config.to_dict()
    if not begins and isinstance(values.get("init"), dict):
        values["init"]["checkpoint"] = values["init"].get("checkpoint") or ""
    try:
        return _from_mapping(TrainConfig, values, "config", _GROUPS)
    except ConfigError:
        raise
    except ValueError as error:
        # The dataclasses name their keys without the prefix.
        text = str(error)
        raise ConfigError(text if text.startswith("config.") else f"config.{text}") from error


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """A config as nested dicts of JSON values, as checkpoints keep it."""
    return dataclasses.asdict(config)


def to_config_dict(value: Any) -> ml_collections.ConfigDict:
    """A dataclass as a ConfigDict, in which keys without a value know their type."""
    entries = {}
    types_of = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        entry = getattr(value, field.name)
        if dataclasses.is_dataclass(entry):
            entry = to_config_dict(entry)
        elif isinstance(entry, Mapping):
            entry = ml_collections.ConfigDict({k: to_config_dict(v) for k, v in entry.items()})
        elif typing.get_origin(types_of[field.name]) in (types.UnionType, typing.Union):
            # A reference knows the type of a key that has no value, or is set to None later.
            expected = typing.get_args(types_of[field.name])[0]
            is_group = dataclasses.is_dataclass(expected)
            kind = ml_collections.ConfigDict if is_group else expected
            entry = config_dict.FieldReference(entry, field_type=kind)
        entries[field.name] = entry
    return ml_collections.ConfigDict(entries)


# --- values --------------------------------------------------------------------------------------

# (value, path of its key) -> the dataclass behind it.
_Load = Callable[[Any, str], Any]


def _tagged(tag: str, classes: Callable[[], Mapping[str, type]], *, optional: bool = False) -> Any:
    """Loads a group whose key `tag` decides the dataclass."""

    def load_group(value: Any, path: str) -> Any:
        if value is None and optional:
            return None
        entries = _group(value, path)
        name, known = str(entries.get(tag)), classes()
        if name not in known:
            raise ConfigError(f"{path}.{tag}={name!r} is unknown; choose from {[*known]}")
        return _from_mapping(known[name], entries, path, {"data": _DATA} if tag == "kind" else {})

    return load_group


def _evaluators(value: Any, path: str) -> dict[str, Any]:
    load_one = _tagged("kind", lambda: EVALUATORS)
    loaded = {}
    for name, entry in _group(value, path).items():
        try:
            loaded[name] = load_one(entry, f"{path}.{name}")
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{path}.{name}.{error}") from error
    return loaded


_DATA = _tagged("name", lambda: DATA, optional=True)
_GROUPS: Mapping[str, _Load] = {
    "model": _tagged("name", lambda: MODELS),
    "objective": _tagged("name", lambda: {name: each[0] for name, each in METHODS.items()}),
    "data": _tagged("name", lambda: DATA),
    "optimizer": _tagged("name", lambda: OPTIMIZERS),
    "evaluators": _evaluators,
}


def _group(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}={value!r} must be a group of keys")
    return value


def _from_mapping(
    cls: type, values: Mapping[str, Any], path: str, groups: Mapping[str, _Load]
) -> Any:
    """`values` as the dataclass `cls`; `groups` loads keys that their type does not decide."""
    types_of = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, sorted(fields), n=1, cutoff=0.0)
            raise ConfigError(f"{path}.{key} is no key; did you mean {path}.{near[0]}?")
    for key in sorted(fields - set(values)):
        raise ConfigError(f"{path}.{key} is missing; start from darl_jax.config.default_config()")
    entries = {}
    for key, value in values.items():
        expected, where = types_of[key], f"{path}.{key}"
        if key in groups:
            entries[key] = groups[key](value, where)
        elif dataclasses.is_dataclass(expected):
            entries[key] = _from_mapping(
                typing.cast(type, expected), _group(value, where), where, {}
            )
        else:
            entries[key] = _checked(expected, value, where)
    return cls(**entries)


def _checked(expected: Any, value: Any, where: str) -> Any:
    """`value` if it has the expected type; whole numbers serve as floats, lists as tuples."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if value is None and type(None) not in arguments:
        raise ConfigError(f"{where} has no value: give --{where}=...")
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where}={value!r} is unknown; choose from {list(arguments)}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _checked(arguments[0], value, where)
    if origin is tuple and isinstance(value, (tuple, list)):
        if arguments[-1] is not ... and len(value) != len(arguments):
            raise ConfigError(f"{where}={value!r} must have {len(arguments)} entries")
        return tuple(_checked(arguments[0], entry, where) for entry in value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is tuple or type(value) is not expected:
        name = expected.__name__ if isinstance(expected, type) else str(expected)
        raise ConfigError(f"{where}={value!r} is a {type(value).__name__}; it must be a {name}")
    return value
