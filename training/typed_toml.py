"""Parse a TOML file into frozen dataclasses; a value of the wrong type raises an error that names it."""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from encoders.base import DatasetError

Settings = TypeVar("Settings")


class AtLeast(NamedTuple):
    """An inclusive lower bound."""

    least: float


class AtMost(NamedTuple):
    """An inclusive upper bound."""

    most: float


class Above(NamedTuple):
    """An exclusive lower bound; the number must also be finite."""

    limit: float


Seed = Annotated[int, AtLeast(0), AtMost(2**63 - 1)]  # the range torch accepts
Share = Annotated[float, Above(0), AtMost(1)]
Count = Annotated[int, AtLeast(1)]
CountOrZero = Annotated[int, AtLeast(0)]
PositiveOrZero = Annotated[float, AtLeast(0)]
Positive = Annotated[float, Above(0)]


def read_toml(path: Path, kind: type[Settings], overrides: Sequence[str] = ()) -> Settings:
    """Read a dataclass from a TOML file; raises DatasetError naming a missing, unknown or ill-typed setting.

    overrides: `dotted.name=value` strings, the value in TOML syntax (a bare word is a string), applied before
    anything is checked. Fields that have a default may be left out.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read as training settings: {error}") from error
    for override in overrides:
        _set_value(values, override)
    return build_settings(kind, values, str(path))


def build_settings(kind: type[Settings], values: dict[str, Any], where: str) -> Settings:
    """Build a dataclass from plain values, checked like those of a file; errors name `where` they stand."""
    built: Settings = _build(kind, values, where)
    return built


def _set_value(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *tables, last = name.strip().split(".")
    if not equals or not last:
        raise DatasetError(f"{override!r} sets nothing: write it as name=value, such as seed=2")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise DatasetError(f"{name} cannot be set: {table} is a value and not a table of settings")
    values[last] = _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _build(kind: Any, values: Any, where: str) -> Any:
    known: tuple[Field[Any], ...] = fields(kind)
    if not _fits(known, values):
        given = ", ".join(sorted(values)) if isinstance(values, dict) else repr(values)
        raise DatasetError(f"{where} must hold {_list_names(known)} and holds {given}")
    hints = get_type_hints(kind, include_extras=True)
    return kind(**{name: _convert(hints[name], value, f"{where}: {name}") for name, value in values.items()})


def _fits(known: tuple[Field[Any], ...], values: Any) -> bool:
    """Whether every field without a default has a value, and there are no unknown names."""
    return isinstance(values, dict) and _find_needed(known) <= set(values) <= {field.name for field in known}


def _find_needed(known: tuple[Field[Any], ...]) -> set[str]:
    return {field.name for field in known if field.default is MISSING and field.default_factory is MISSING}


def _list_names(known: tuple[Field[Any], ...]) -> str:
    """The names that a table must have, "exactly" if it has no others, and those that it may have."""
    needed = _find_needed(known)
    free = sorted({field.name for field in known} - needed)
    must = ", ".join(sorted(needed))
    return f"{must or 'nothing'}, may hold {', '.join(free)}," if free else f"exactly {must},"


def _convert(kind: Any, value: Any, where: str) -> Any:
    if get_origin(kind) is Annotated:
        plain, *bounds = get_args(kind)
        number = _convert(plain, value, where)
        for bound in bounds:
            _require_bound(bound, number, where)
        return number
    if get_origin(kind) in (Union, UnionType):
        if value is None and NoneType in get_args(kind):
            return None
        return _convert(_choose(get_args(kind), value), value, where)
    if is_dataclass(kind):
        return _build(kind, value, where)
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise DatasetError(f"{where} must be a table, and is {value!r}")
        return {name: _convert(get_args(kind)[1], item, f"{where}.{name}") for name, item in value.items()}
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise DatasetError(f"{where} must be one of {', '.join(get_args(kind))}, and is {value!r}")
        return value
    if get_args(kind):
        if not isinstance(value, list | tuple):
            raise DatasetError(f"{where} must be a list, and is {value!r}")
        return tuple(_convert(get_args(kind)[0], item, where) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(str(value))  # an int too large for a float becomes inf, not an error
    if type(value) is not kind:
        raise DatasetError(f"{where} must be {kind.__name__}, and is {value!r:.100}")
    return value


def _require_bound(bound: AtLeast | AtMost | Above, value: float, where: str) -> None:
    # Written so that nan is rejected too.
    if isinstance(bound, AtLeast) and not value >= bound.least:
        raise DatasetError(f"{where} must be at least {bound.least:g}, and is {value}")
    if isinstance(bound, AtMost) and not value <= bound.most:
        raise DatasetError(f"{where} must be at most {bound.most}, and is {value}")
    if isinstance(bound, Above) and not bound.limit < value < math.inf:
        raise DatasetError(f"{where} must be more than {bound.limit:g} and finite, and is {value}")


def _choose(kinds: tuple[Any, ...], value: Any) -> Any:
    """Pick the table type by its `kind`, or else by its settings; if none fits, the first, for its error."""
    tables = [kind for kind in kinds if is_dataclass(kind)]
    if isinstance(value, dict) and "kind" in value:
        named = (kind for kind in tables if value["kind"] in get_args(get_type_hints(kind).get("kind")))
    else:
        named = (kind for kind in tables if _fits(fields(kind), value))
    return next(named, kinds[0])
