"""The one place that reads params.yaml: YAML 1.2 as DVC reads it, and every fault of the file in one message."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from cifarflow.config.schema import Config
from cifarflow.errors import ConfigError, did_you_mean, printable

MAX_CHARACTERS = 1 << 18
MAX_DEPTH = 20
SHOWN_FAULTS = 20
MAX_LINE = 500


def load_config(path: Path) -> Config:
    """The validated params of `path`.

    Raises ConfigError naming every unknown, missing or wrong key, its value and what is allowed.
    """
    tree = read_yaml(path)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        count = error.error_count()
        faults = [
            printable(_describe(fault))[:MAX_LINE] for fault in error.errors(include_url=False)[:SHOWN_FAULTS]
        ]
        more = [f"... and {count - SHOWN_FAULTS} more"] if count > SHOWN_FAULTS else []
        head = f"{path.name} has {count} fault{'s' if count > 1 else ''}:"
        hint = "Mend the file, or put a whole recipe in place: `uv run cifarflow recipe NAME`."
        raise ConfigError("\n  ".join([head, *faults, *more]) + f"\n{hint}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML 1.2 mapping; no tags, no doubled keys, no aliases (a page of them can ask for gigabytes).

    Raises ConfigError on everything else, in a time and memory that MAX_CHARACTERS and MAX_DEPTH bound.
    """
    text = _read_text(path)
    try:
        for fault in _forbidden(text):
            raise ConfigError(f"{path} {fault}")
        tree = YAML(typ="safe", pure=True).load(text)
    except ConfigError:
        raise
    except Exception as error:  # on hostile scalars the reader raises nearly anything
        reason = str(error) if isinstance(error, (YAMLError, ValueError)) else repr(error)
        raise ConfigError(f"{path} is not valid YAML 1.2: {printable(' '.join(reason.split()))}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, got {type(tree).__name__}.")
    return tree


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist. Run from the project's folder, or `uv run cifarflow recipe cifar94`."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{path} is too long: at most {MAX_CHARACTERS:,} characters are read.")
    return text


def _forbidden(text: str) -> Iterator[str]:
    """What no params file needs, found event by event, so that the reader never builds it."""
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, AliasEvent):
            yield "uses a YAML alias (*name), which is not allowed. Write the value out."
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            yield f"is nested more than {MAX_DEPTH} levels deep. Remove the inner brackets or sections."


def _describe(fault: Any) -> str:
    """One line for one pydantic fault."""
    location = fault["loc"]
    key = ".".join(str(part) for part in location) or "(whole file)"
    if fault["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        return f"{key}: unknown key. {did_you_mean(str(location[-1]), known)}Known here: {', '.join(known)}."
    if fault["type"] == "missing":
        return f"{key}: missing. Add it; recipes/ has every key with its unit and range."
    value = fault["input"]
    if fault["type"] == "value_error":
        return f"{key}: {fault['ctx']['error']}."
    guess = ""
    if fault["type"] == "literal_error" and isinstance(value, str):
        guess = did_you_mean(value, _quoted(fault["ctx"]["expected"])).rstrip()
    expected = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{key}: got {_shown(value)} ({type(value).__name__}); {expected}. {guess}".rstrip()


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of thousands of digits, such as a hexadecimal one
        return "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."


def _quoted(expected: str) -> list[str]:
    return expected.split("'")[1::2]


def _known_keys(location: Sequence[str | int]) -> list[str]:
    """The keys that the schema allows at a place."""
    models: list[type[BaseModel]] = [Config]
    for part in location:
        if isinstance(part, int):
            continue
        models = [inner for model in models for inner in _models_in(model.model_fields[part].annotation)]
    return sorted(key for model in models for key in model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)
