"""Reads nerfstudio's `config.yml` without running code that the file names.

nerfstudio writes its configuration as YAML with Python tags and reads it with `yaml.Loader`, which calls whatever the
file asks for. The loader here knows four tags and refuses the rest:

    !!python/tuple         a tuple
    !!python/name:X        X, a class of nerfstudio, eugen3d or torch.optim, or a function of nerfstudio.data.utils
    !!python/object:X      an instance of X, a dataclass of nerfstudio or eugen3d, without calling its constructor
    !!python/object/apply:X [...]     X(...), a path or a member of an enumeration of nerfstudio or eugen3d
"""

import dataclasses
import enum
import importlib
import inspect
import pathlib
from pathlib import Path
from typing import Any

import yaml
from nerfstudio.engine.trainer import TrainerConfig

from eugen3d.cli.errors import UsageError, first_line

PACKAGES = ("nerfstudio.", "eugen3d.")
CLASS_PACKAGES = (*PACKAGES, "torch.optim.")
FUNCTION_PACKAGES = ("nerfstudio.data.utils.",)
CALLABLES = (pathlib.PurePath, enum.Enum)

_TAG = "tag:yaml.org,2002:python/"


def read_config(path: Path) -> TrainerConfig:
    """The configuration in a `config.yml`.

    Raises:
        UsageError: the file is missing, is no YAML, names what the loader refuses, or holds no `TrainerConfig`.
    """
    try:
        text = path.read_text(encoding="utf8")
    except FileNotFoundError:
        raise UsageError(f"{path}: not found, expected a run's config.yml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({first_line(error)}), expected a run's config.yml") from None
    try:
        config = yaml.load(text, Loader=_ConfigLoader)
    except _RefusedError as refusal:
        raise UsageError(f"{path}: {refusal}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: is not valid YAML ({_where(error)}), expected a run's config.yml") from None
    if not isinstance(config, TrainerConfig):
        raise UsageError(f"{path}: holds a {type(config).__name__}, expected nerfstudio's TrainerConfig")
    return config


class _RefusedError(Exception):
    """A tag that the loader does not follow."""


class _ConfigLoader(yaml.SafeLoader):
    """A safe loader that knows the tags above."""


def _construct_tuple(loader: _ConfigLoader, node: yaml.Node) -> tuple[Any, ...]:
    return tuple(_sequence(loader, "tuple", node))


def _construct_name(loader: _ConfigLoader, name: str, node: yaml.Node) -> Any:
    found = _find(name, f"name:{name}", node)
    if inspect.isclass(found) and _comes_from(found, CLASS_PACKAGES):
        return found
    if inspect.isfunction(found) and _comes_from(found, FUNCTION_PACKAGES):
        return found
    raise _refusal(f"name:{name}", node, "a class of nerfstudio, eugen3d or torch.optim")


def _construct_object(loader: _ConfigLoader, name: str, node: yaml.Node) -> Any:
    """As unpickling would: the instance's attributes are set, a missing one to its field's default."""
    tag = f"object:{name}"
    found = _find(name, tag, node)
    if not (inspect.isclass(found) and dataclasses.is_dataclass(found) and _comes_from(found, PACKAGES)):
        raise _refusal(tag, node, "a dataclass of nerfstudio or eugen3d")
    if not isinstance(node, yaml.MappingNode):
        raise _refusal(tag, node, "a mapping of attributes")
    state = loader.construct_mapping(node, deep=True)
    instance = object.__new__(found)
    vars(instance).update(_defaults(found) | {str(key): value for key, value in state.items()})
    if found.__module__.startswith("eugen3d.") and (check := getattr(instance, "__post_init__", None)):
        try:
            check()
        except (TypeError, ValueError) as error:
            raise _RefusedError(f"line {node.start_mark.line + 1}: {first_line(error)}") from None
    return instance


def _construct_apply(loader: _ConfigLoader, name: str, node: yaml.Node) -> Any:
    tag = f"object/apply:{name}"
    found = _find(name, tag, node)
    if not (inspect.isclass(found) and issubclass(found, CALLABLES) and _comes_from(found, (*PACKAGES, "pathlib"))):
        raise _refusal(tag, node, "a path or an enumeration of nerfstudio")
    arguments = _sequence(loader, tag, node)
    try:
        return found(*arguments)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise _RefusedError(f"line {node.start_mark.line + 1}: !!python/{tag} failed ({first_line(error)})") from None


_ConfigLoader.add_constructor(f"{_TAG}tuple", _construct_tuple)
_ConfigLoader.add_multi_constructor(f"{_TAG}name:", _construct_name)
_ConfigLoader.add_multi_constructor(f"{_TAG}object:", _construct_object)
_ConfigLoader.add_multi_constructor(f"{_TAG}object/apply:", _construct_apply)


def _find(name: str, tag: str, node: yaml.Node) -> Any:
    """The object of that dotted name; nothing but the allowed packages is imported to look for it."""
    module, _, attribute = name.rpartition(".")
    if module.partition(".")[0] not in ("nerfstudio", "eugen3d", "torch", "pathlib"):
        raise _refusal(tag, node, "names of nerfstudio, eugen3d, torch.optim and pathlib only")
    if module.startswith("torch") and not f"{module}.".startswith("torch.optim."):
        raise _refusal(tag, node, "of torch's names those of torch.optim only")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise _refusal(tag, node, f"a name that exists here: {first_line(error)}") from None


def _comes_from(found: Any, packages: tuple[str, ...]) -> bool:
    """Whether an object was defined in one of the packages, whatever module it was named through."""
    return f"{found.__module__}.".startswith(packages)


def _sequence(loader: _ConfigLoader, tag: str, node: yaml.Node) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise _refusal(tag, node, "a list of arguments")
    return loader.construct_sequence(node, deep=True)


def _defaults(kind: type) -> dict[str, Any]:
    """A dataclass's defaults, for files that an older version wrote."""
    values = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
    return values


def _refusal(tag: str, node: yaml.Node, expected: str) -> _RefusedError:
    return _RefusedError(f"line {node.start_mark.line + 1}: refused the tag !!python/{tag}, expected {expected}")


def _where(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return first_line(error)
