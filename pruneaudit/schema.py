"""Data of this project: frozen, typed, unknown keys refused; read from TOML with one line that says what is wrong."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from pruneaudit.errors import ConfigError, nearest


class Frozen(BaseModel):
    """Base of all data in this project: immutable, and a key nobody knows is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Model = TypeVar("Model", bound=BaseModel)
#: Bytes that a TOML file may have.
MOST_OF_TOML = 1 << 22


def _arguments(value: object) -> object:
    """Keyword arguments, given as a table or as pairs, in one order and hashable."""
    if not isinstance(value, Mapping | list | tuple):
        raise ValueError("expected a table")
    pairs = value.items() if isinstance(value, Mapping) else value
    return tuple(sorted(((name, _fixed(str(name), one)) for name, one in pairs), key=lambda pair: pair[0]))


def _fixed(name: str, value: object) -> object:
    """A value of TOML that cannot change; lists become tuples."""
    if isinstance(value, list | tuple):
        return tuple(_fixed(name, one) for one in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number")
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"{name}: expected a number, a text, true or false, or a list of them")
    return value


#: Keyword arguments by name, sorted: keys of caches, and parts of identities.
Arguments = Annotated[tuple[tuple[str, Any], ...], BeforeValidator(_arguments)]


def load_as(kind: type[Model], path: Path) -> Model:
    """Read a file as a model whose name is the file's.

    Raises:
        ConfigError: The file is no TOML or no such model; the message names file, key and what was expected.
    """
    return validate(kind, {**read_toml(path), "name": path.stem}, path)


def read_toml(path: Path) -> dict[str, Any]:
    """Content of a TOML file whose name is the name of what it holds.

    Raises:
        ConfigError: It cannot be read, is no TOML, or states a name.
    """
    try:
        if path.stat().st_size > MOST_OF_TOML:
            raise ConfigError(f"{path}: is larger than {MOST_OF_TOML >> 20} MiB; no file of settings is")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    content = parse_toml(path, text)
    if "name" in content:
        raise ConfigError(f"{path}: name: the file name is the name; delete this key")
    return content


def parse_toml(path: Path, text: str, number: Callable[[str], Any] = float) -> dict[str, Any]:
    """What a text says that a file holds.

    Args:
        path: The file, for the error.
        text: Its content.
        number: What is made of a float as it is written.

    Raises:
        ConfigError: It is no TOML, or too deep.
    """
    try:
        return tomllib.loads(text, parse_float=number)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: lists or tables within each other too deeply to be read") from None


def validate(kind: type[Model], content: dict[str, Any], path: Path) -> Model:
    """Content of a file as a model.

    Raises:
        ConfigError: It is none; the message names file, key and what was expected.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explained(error, kind)}") from None


def explained(error: ValidationError, kind: type[BaseModel]) -> str:
    """First problem of a validation error as ``key: what was expected``."""
    problems = error.errors()
    # A misspelt key is the cause, the missing one only its consequence.
    problem = next((found for found in problems if found["type"] == "extra_forbidden"), problems[0])
    where = [str(part) for part in problem["loc"]]
    key = ".".join(where)
    if problem["type"] == "extra_forbidden":
        model = kind
        for part in where[:-1]:
            # A part that is no field is the place in a list of models.
            if part in model.model_fields:
                annotation = model.model_fields[part].annotation
                inner = (annotation, *get_args(annotation))
                model = next((one for one in inner if isinstance(one, type) and issubclass(one, BaseModel)), model)
        return f"{key}: unknown key.{nearest(where[-1], model.model_fields)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{key}: missing; this key is required"
    value = problem.get("input")
    # Of a long text its beginning tells enough; a whole number of many digits has no text at all.
    is_plain = isinstance(value, str | float | bool) or (isinstance(value, int) and abs(value) < 1 << 64)
    shown = f" (got {(value[:100] if isinstance(value, str) else value)!r})" if is_plain else ""
    return f"{key + ': ' if key else ''}{message}{shown}"


def stated_twice(pairs: Sequence[tuple[str, Any]]) -> str | None:
    """The first name that an object of JSON states twice, of which programs keep the one or the other; None: none."""
    names = [name for name, _ in pairs]
    return next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
