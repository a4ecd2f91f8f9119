"""The one reader of configuration: YAML file + `--set a.b=c` -> a frozen, typed tree.

A file may begin with `base: other.yaml`, a path relative to it, and hold what differs: sections are merged
key by key, everything else is replaced.

Each class that has settings declares them as a `Config` beside itself; a run's config nests them.
"""

import difflib
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import UserError


class Config(BaseModel):
    """Base of all settings: immutable, typed, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


C = TypeVar("C", bound=Config)


def load_config(
    kind: type[C], path: str | Path, overrides: Iterable[str] = (), section: str | None = None
) -> C:
    """Reads `path` upon its base, applies `key.sub=value` overrides (YAML) and validates as `kind`.

    `section` validates that top-level key alone, for commands that need no more of a run file.
    Raises UserError naming the file, the key and, for an unknown one, the nearest that exists.
    """
    tree, origin = _read_on_base(Path(path))
    for override in overrides:
        apply_override(tree, override)
    if section is not None:
        if section not in tree:
            raise UserError(f"{origin} has no section `{section}:`.")
        tree = tree[section]
    return parse_config(kind, tree, origin, section)


def parse_config(kind: type[C], tree: Any, origin: str, section: str | None = None) -> C:
    """Validates a plain tree; `origin` and the `section` that it was in name it in the error."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(_explain(kind, problem, section) for problem in error.errors())
        end = "" if problems.endswith("?") else "."
        raise UserError(f"{origin}: {problems}{end}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping."""
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"no configuration file {path}.") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold a mapping of settings, not {type(tree).__name__}.")
    return tree


def merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`base` with what differs in `own`: mappings are merged, all else is replaced."""
    merged = dict(base)
    for name, value in own.items():
        nested = isinstance(value, dict) and isinstance(base.get(name), dict)
        merged[name] = merge(base[name], value) if nested else value
    return merged


def _read_on_base(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], str]:
    """A file's tree upon that of its `base:`, and the names of both. Raises UserError."""
    if path.resolve() in above:
        raise UserError(f"{path} is its own base: files may not name each other in a ring.")
    tree = read_yaml(path)
    base = tree.pop("base", None)
    if base is None:
        return tree, str(path)
    if not isinstance(base, str):
        raise UserError(f"{path}: `base` must be the path of one other file, relative to this one.")
    try:
        below, origin = _read_on_base(path.parent / base, (*above, path.resolve()))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return merge(below, tree), f"{path} on {origin}"


def dump_config(config: Config) -> str:
    """The resolved tree as YAML, which `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets one `key.sub=value` in a plain tree. Raises UserError."""
    name, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"--set {override}: write it as key.sub=value.")
    *parents, last = name.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UserError(f"--set {override}: `{parent}` is a value, not a section.")
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: `{value}` is not a YAML value.") from None


def _explain(kind: type[Config], problem: Any, section: str | None) -> str:
    parts = (section, *problem["loc"]) if section else problem["loc"]
    where = ".".join(map(str, parts)) or "top level"
    if problem["type"] != "extra_forbidden":
        return f"`{where}`: {problem['msg']}"
    known = _fields_at(kind, problem["loc"][:-1])
    name = str(problem["loc"][-1])
    near = difflib.get_close_matches(name, known, n=1) or [
        ".".join(filter(None, (section, path))) for path in _paths_to(name, kind)
    ]
    hint = f"did you mean `{near[0]}`?" if near else "known here: " + ", ".join(sorted(known))
    return f"unknown key `{where}`, {hint}"


def _fields_at(kind: Any, path: tuple[Any, ...]) -> list[str]:
    """Names of the settings of the Config that lies at `path` below `kind`."""
    for name in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if name not in kind.model_fields:
                continue  # a union's tag, not a key
            kind = kind.model_fields[name].annotation
        kind = _inner(kind)
    kind = _inner(kind)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _paths_to(name: str, kind: Any, above: str = "") -> Iterator[str]:
    """Where below `kind` a setting of this name lies, but for lists of sections."""
    fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
    for own, field in fields.items():
        if own == name:
            yield above + own
        yield from _paths_to(name, field.annotation, f"{above}{own}.")


def _inner(kind: Any) -> Any:
    """The Config inside `list[X]`, `dict[str, X]`, `X | None`."""
    origin = typing.get_origin(kind)
    if origin in (list, tuple, dict, typing.Union, types.UnionType):
        options = [_inner(option) for option in typing.get_args(kind)]
        models = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        return models[0] if models else kind
    return kind
