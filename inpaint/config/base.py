"""The strict model every setting derives from, and overriding one by its dotted path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inpaint.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
Positive = Annotated[int, Field(gt=0)]


class Strict(BaseModel):
    """A frozen settings group that refuses unknown keys and wrong types."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """`["method.weights.style=3", ...]` as `{"method.weights.style": 3}`; values are read as YAML.

    Raises:
        ConfigError: an assignment without `=` or with an unreadable value.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"--set {assignment}: expected path=value, for instance method.weights.style=3")
        try:
            overrides[path.strip()] = yaml.load(text, Loader=_Yaml)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {assignment}: the value is not YAML ({error})") from error
    return overrides


def apply_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested `values` with each dotted path of `overrides` set; missing groups on the way are made."""
    result: dict[str, Any] = _copy(values)
    for path, value in overrides.items():
        group = result
        *parents, leaf = path.split(".")
        for parent in parents:
            child = group.get(parent)
            if child is None:
                child = group[parent] = {}
            if not isinstance(child, dict):
                raise ConfigError(f"{path}: {parent} is a value, not a group of settings")
            group = child
        group[leaf] = _copy(value) if isinstance(value, Mapping) else value
    return result


def lay_over(model: type[BaseModel], values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`apply_overrides` for values of `model`, in which another `kind` takes over those settings that it has too.

    `holes.kind: half` in the place of strokes leaves the strokes' settings behind, which the halves do not know.
    """
    result: dict[str, Any] = _copy(values)
    for path, kind in overrides.items():
        parents = path.split(".")[:-1]
        group: Any = result
        for parent in parents:
            group = group.get(parent) if isinstance(group, dict) else None
        if path.endswith(".kind") and isinstance(group, dict) and group.get("kind") != kind:
            known = _walk(model, [*parents, str(kind)])[1]
            for setting in [name for name in group if name not in known]:
                del group[setting]
    return apply_overrides(result, overrides)


def load_yaml(text: str, *, place: str) -> dict[str, Any]:
    """A YAML mapping from text; `place` names the source in errors.

    Raises:
        ConfigError: not YAML, or not a mapping.
    """
    try:
        values = yaml.load(text, Loader=_Yaml)
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: not YAML ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{place}: expected a mapping of settings, found {type(values).__name__}")
    return values


def names_in(folder: Traversable) -> list[str]:
    """Names of the YAML files in a folder, sorted."""
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def is_file_name(source: str) -> bool:
    """Whether a source of settings is a user's file, and not one of ours by name."""
    return Path(source).suffix in (".yaml", ".yml")


def read_yaml(source: str, *, kind: str, folder: Traversable) -> dict[str, Any]:
    """The mapping in a user's file, or in the file of that name in `folder`, else in the working directory.

    Args:
        source: a path or a name; `mine` is also found as mine.yaml here, where `inpaint sweep promote` writes it.
        kind: what the files of the folder are, one word ("preset").
        folder: of the files known by name.

    Raises:
        ConfigError: no such file or name; names the nearest one.
    """
    if is_file_name(source):
        path = Path(source)
        if not path.is_file():
            raise ConfigError(f"{source}: no such file")
        return load_yaml(path.read_text(), place=source)
    known = names_in(folder)
    if source not in known:
        if (path := Path(f"{source}.yaml")).is_file():
            return load_yaml(path.read_text(), place=str(path))
        raise ConfigError(f"{source} is not a {kind}{suggest(source, known)}; {kind}s: {', '.join(known)}")
    return load_yaml((folder / f"{source}.yaml").read_text(), place=source)


def validate(model: type[Model], values: Mapping[str, Any], *, place: str) -> Model:
    """`values` as a checked `model`.

    Raises:
        ConfigError: every wrong setting, one per line, with its dotted path and, for an unknown key, the nearest
            known one.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, detail, place) for detail in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def known_paths(model: BaseModel, prefix: str = "") -> list[str]:
    """Every dotted path of a settings tree that holds a plain value."""
    paths: list[str] = []
    for name, field in type(model).model_fields.items():
        path, value = f"{prefix}{field.alias or name}", getattr(model, name)
        if isinstance(value, BaseModel):
            paths += known_paths(value, path + ".")
        elif isinstance(value, dict) and value and all(isinstance(v, BaseModel) for v in value.values()):
            for key, child in value.items():
                paths += known_paths(child, f"{path}.{key}.")
        else:
            paths.append(path)
    return paths


def suggest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean x?"`, or an empty string when nothing known is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


class _Yaml(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number, as everybody who writes it means, and a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; of two equal keys the first would be lost without a word."""
        own = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if doubles := [key for place, key in enumerate(own) if key in own[:place]]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{doubles[0]} stands here twice; drop one of them", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _copy(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _copy(value) for key, value in values.items()}
    return list(values) if isinstance(values, list) else values


def _explain(model: type[BaseModel], detail: Any, place: str) -> str:
    location, _ = _walk(model, [str(part) for part in detail["loc"]])
    path = ".".join(location)
    if detail["type"] == "extra_forbidden":
        group = ".".join(location[:-1]) or model.__name__
        _, settings = _walk(model, [str(part) for part in detail["loc"][:-1]])
        return f"{place}: {path} is not a setting of {group}{suggest(location[-1], settings)}"
    if detail["type"] == "value_error":
        return f"{place}: {path + ': ' if path else ''}{detail['ctx']['error']}"
    if detail["type"] == "union_tag_invalid":
        found, known = detail["ctx"]["tag"], detail["ctx"]["expected_tags"].replace("'", "").split(", ")
        setting = f"{path}.{detail['ctx']['discriminator'].strip(chr(39))}"
        return f"{place}: {setting} {found!r} is not one of {', '.join(known)}{suggest(found, known)}"
    if detail["type"] == "union_tag_not_found":
        return f"{place}: {path}.{detail['ctx']['discriminator'].strip(chr(39))} field required"
    value = "" if detail["type"] == "missing" else f" {detail['input']!r}:"
    return f"{place}: {path}{value} {detail['msg'][:1].lower()}{detail['msg'][1:]}"


def _walk(model: type[BaseModel], location: list[str]) -> tuple[list[str], list[str]]:
    """The path a user would write for pydantic's error location, and the settings known where it ends.

    Pydantic puts the tag of a union's chosen member ("isnet") into the location; a path in YAML has no such part.
    """
    path: list[str] = []
    groups: list[Any] = [model]
    for part in location:
        chosen = [group for group in groups if _tag(group) == part]
        if chosen and len(groups) > 1:
            groups = chosen
            continue
        path.append(part)
        fields = [f for g in groups for n, f in g.model_fields.items() if part in (n, f.alias)]
        groups = [inner for field in fields for inner in _models_in(field.annotation)] or groups
    return path, sorted({field.alias or name for group in groups for name, field in group.model_fields.items()})


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _tag(model: Any) -> str:
    """What pydantic calls a member of a union: by its `name` or `kind`, else by its class."""
    for name in ("name", "kind"):
        field = model.model_fields.get(name)
        if field is not None and isinstance(field.default, str):
            return field.default
    return str(model.__name__)
