"""An experiment's YAML file, read strictly: what is unknown, missing or given twice is refused with its place."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from eugen3d.cli.errors import UsageError, first_line

TEACHER = "teacher"
"""The name of a scene's given run, as a job's input."""

SCENE_KEYS = {"data", "teacher", "train"}
ACTIONS = ("train", "distill", "plan")
JOB_KEYS = {*ACTIONS, "flags", "grid", "seeds"}

Flags = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """What the jobs run on."""

    data: Path
    """The scene's folder."""
    teacher: Path | None = None
    """The config.yml of a trained run, known to the jobs as `teacher`."""
    train: Flags = field(default_factory=dict)
    """Flags of every training on this scene, such as its bounds."""


@dataclass(frozen=True)
class JobEntry:
    """A run or a plan to make, or several: one for each point of the grid, and for each seed."""

    train: str | None = None
    """The method that `ns-train` trains; one of this, `distill` and `plan`."""
    distill: str | None = None
    """The name of what `eugen3d distill` starts from; that of a plan stands for what was planned, and the plan."""
    plan: str | None = None
    """The name of what `eugen3d plan` plans."""
    flags: Flags = field(default_factory=dict)
    """The command's flags, without their dashes."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Flags that take several values; every combination is a job."""
    seeds: tuple[int, ...] = ()
    """One job for each; without any, the command's default or the seed of the input."""

    @property
    def action(self) -> str:
        """The key that says what makes it."""
        return "train" if self.train else "distill" if self.distill else "plan"

    @property
    def source(self) -> str | None:
        """The name of what it starts from."""
        return self.distill or self.plan


@dataclass(frozen=True)
class Specification:
    """An experiment's file."""

    path: Path
    scenes: dict[str, Scene]
    jobs: dict[str, JobEntry]
    compare_with: str
    """The run that all others of its scene are compared with."""
    score: Flags = field(default_factory=dict)
    """Flags of `eugen3d score`."""
    raw: dict[str, Any] = field(default_factory=dict)
    """The file's content as it stands."""


def read_specification(path: Path) -> Specification:
    """Read an experiment's file.

    Raises:
        UsageError: it cannot be used; the message names file and key.
    """
    raw = _read_yaml(path)
    top = _Reader(path, "", raw, {"scenes", "jobs", "compare-with", "score"})
    scenes = {name: _scene(top.child("scenes", name, SCENE_KEYS)) for name in top.names("scenes")}
    jobs = {name: _job(top.child("jobs", name, JOB_KEYS)) for name in top.names("jobs")}
    given = {name for name, scene in scenes.items() if scene.teacher}
    for name in scenes:
        if given and name not in given:
            raise top.refuse(f"scenes.{name}.teacher", f"is missing, expected one as scenes.{min(given)} has it")
    if given and TEACHER in jobs:
        raise top.refuse(f"jobs.{TEACHER}", "is the name of the scenes' given teacher, expected another one")
    plans = {name for name, entry in jobs.items() if entry.plan}
    for name, entry in jobs.items():
        known = [TEACHER] * bool(given) + [other for other in jobs if not (entry.plan and other in plans)]
        if entry.source and entry.source not in known:
            others = ", ".join(other for other in known if other != name)
            raise top.refuse(f"jobs.{name}.{entry.action}", f"found {entry.source!r}, expected one of {others}")
    runs = [name for name in jobs if name not in plans]
    compare_with = top.text("compare-with") or (TEACHER if given else next(iter(runs), ""))
    return Specification(path, scenes, jobs, compare_with, top.flags("score"), raw)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf8"), Loader=_StrictLoader)
    except FileNotFoundError:
        raise UsageError(f"{path}: not found, expected an experiment's YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({first_line(error)}), expected a YAML file") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UsageError(f"{path}: is not valid YAML ({line}{error.problem})") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: is not valid YAML ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: holds {_kind(content)}, expected the keys scenes and jobs")
    return content


MERGE = "tag:yaml.org,2002:merge"


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which would take the last of two equal keys without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:  # <<: what another mapping has, under the keys that are not here
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is no text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return node


@dataclass(frozen=True)
class _Reader:
    """A mapping of the file, with the place where it stands."""

    path: Path
    place: str
    content: dict[str, Any]
    known: set[str]

    def __post_init__(self) -> None:
        for key in self.content:
            if key not in self.known:
                raise self.refuse(key, f"is unknown, expected one of {', '.join(sorted(self.known))}")

    def refuse(self, key: str, problem: str) -> UsageError:
        return UsageError(f"{self.path}: {self.place}{key}: {problem}")

    def names(self, key: str) -> list[str]:
        """The names under a key, of which there has to be one at least, each fit to name a folder."""
        content = self._of(key, dict, "a mapping of names")
        if not content:
            raise self.refuse(key, "is missing or empty, expected at least one name below it")
        for name in content:
            if not name or name.startswith(".") or any(character in "/\\ ,=" for character in name) or name == "score":
                raise self.refuse(key, f"found the name {name!r}, expected one that can name a folder and is not score")
        return list(content)

    def child(self, key: str, name: str, known: set[str]) -> "_Reader":
        content = self.content[key][name]
        if not isinstance(content, dict):
            raise self.refuse(f"{key}.{name}", f"found {_kind(content)}, expected some of {', '.join(sorted(known))}")
        return _Reader(self.path, f"{self.place}{key}.{name}.", content, known)

    def text(self, key: str) -> str | None:
        return self._of(key, str, "a name") or None

    def flags(self, key: str) -> Flags:
        return {_flag(name): value for name, value in self._of(key, dict, "flags and their values").items()}

    def _of(self, key: str, kind: type, expected: str) -> Any:
        value = self.content.get(key, kind())
        if not isinstance(value, kind):
            raise self.refuse(key, f"found {_kind(value)}, expected {expected}")
        return value

    def grid(self, key: str) -> dict[str, list[Any]]:
        grid = self.flags(key)
        for name, values in grid.items():
            if not isinstance(values, list) or not values:
                raise self.refuse(f"{key}.{name}", f"found {_kind(values)}, expected a list of values")
        return grid

    def seeds(self, key: str) -> tuple[int, ...]:
        seeds = self._of(key, list, "a list of whole numbers")
        if any(not isinstance(seed, int) or isinstance(seed, bool) or seed < 0 for seed in seeds):
            raise self.refuse(key, f"found {seeds}, expected whole numbers, 0 or more")
        if len(set(seeds)) < len(seeds):
            raise self.refuse(key, f"found {seeds}, expected each once")
        return tuple(seeds)


def _scene(reader: _Reader) -> Scene:
    data, teacher = reader.text("data"), reader.text("teacher")
    if data is None:
        raise reader.refuse("data", "is missing, expected the scene's folder")
    for key, path in (("data", data), ("teacher", teacher)):
        if path is not None and not Path(path).exists():
            raise reader.refuse(key, f"found no {path}, expected it to be there")
    return Scene(Path(data), Path(teacher) if teacher else None, reader.flags("train"))


def _job(reader: _Reader) -> JobEntry:
    actions = {action: name for action in ACTIONS if (name := reader.text(action)) is not None}
    if len(actions) != 1:
        found = f"both {' and '.join(actions)}" if actions else f"none of {', '.join(ACTIONS)}"
        raise UsageError(f"{reader.path}: {reader.place.rstrip('.')}: has {found}, expected one of them")
    entry = JobEntry(**actions, flags=reader.flags("flags"), grid=reader.grid("grid"), seeds=reader.seeds("seeds"))
    for name in entry.flags.keys() & entry.grid.keys():
        raise reader.refuse(f"grid.{name}", "stands under flags, too, expected it once")
    return entry


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: f"the text {value!r}", type(None): "nothing"}
    return names.get(type(value), repr(value))
