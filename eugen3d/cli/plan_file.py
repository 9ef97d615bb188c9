"""Plan files: what `eugen3d plan` chooses and `eugen3d distill --plan` takes, as JSON.

{"teacher": "<sha256 of its checkpoint>",
 "layers": {"fine.trunk.3": {"kind": "eugen", "num_features": 64, "phi": "relu"},
            "fine.trunk.4": {"kind": "low-rank", "rank": 48}}, …}
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eugen3d.cli.errors import UsageError, first_line
from eugen3d.distill import Network, Plan
from eugen3d.layers import EUGenConfig, KindConfig, LowRankConfig

KEYS = ("teacher", "layers", "budget", "cost", "measured")
REQUIRED = ("teacher", "layers")
LAYER_KEYS = {"eugen": ("kind", "num_features", "phi"), "low-rank": ("kind", "rank")}


def layers_entry(plan: Plan) -> dict[str, dict[str, Any]]:
    """The layers of a plan as they stand in its file."""
    return {f"{part}.{site}": _layer_entry(layer) for part, layers in plan.items() for site, layer in layers.items()}


def read_plan(path: Path, networks: Mapping[str, Network]) -> tuple[Plan, str]:
    """The plan in a file, and the fingerprint of the teacher that it was made for.

    Args:
        networks: those of the teacher that it is to be used for, by name.

    Raises:
        UsageError: the file is missing or is no plan, or the teacher has no such layers.
    """
    try:
        content = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise UsageError(f"--plan {path}: not found, expected a plan that eugen3d plan wrote") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--plan {path}: cannot be read ({first_line(error)}), expected a plan's JSON") from None
    found = _object(content, str(path))
    _check_keys(found, KEYS, REQUIRED, str(path))
    if not isinstance(found["teacher"], str):
        raise UsageError(f"--plan {path}: teacher is {found['teacher']!r}, expected a fingerprint")
    plan: Plan = {}
    for name, entry in _object(found["layers"], f"{path}: layers").items():
        where = f"{path}: layers.{name}"
        part, _, site = name.partition(".")
        if part not in networks or site not in networks[part].sites:
            known = ", ".join(f"{each}.{one}" for each, network in networks.items() for one in network.sites)
            raise UsageError(f"--plan {where}: the teacher has no such layer, expected of {known}")
        layer = _layer(_object(entry, where), where)
        if isinstance(layer, EUGenConfig) and layer.phi != (phi := networks[part].sites[site].phi):
            raise UsageError(f"--plan {where}.phi: is {layer.phi!r}, expected {phi!r}, the teacher's activation there")
        plan.setdefault(part, {})[site] = layer
    if not plan:
        raise UsageError(f"--plan {path}: layers is empty, expected at least one")
    return plan, found["teacher"]


def _layer_entry(layer: KindConfig) -> dict[str, Any]:
    if isinstance(layer, LowRankConfig):
        return {"kind": "low-rank", "rank": layer.rank}
    assert isinstance(layer, EUGenConfig)
    return {"kind": "eugen", "num_features": layer.num_features, "phi": layer.phi}


def _layer(entry: dict[str, Any], where: str) -> KindConfig:
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in LAYER_KEYS:
        raise UsageError(f"--plan {where}.kind: is {kind!r}, expected one of {', '.join(LAYER_KEYS)}")
    _check_keys(entry, LAYER_KEYS[kind], LAYER_KEYS[kind], where)
    size = "rank" if kind == "low-rank" else "num_features"
    if type(entry[size]) is not int:
        raise UsageError(f"--plan {where}.{size}: is {entry[size]!r}, expected a whole number")
    try:
        if kind == "low-rank":
            return LowRankConfig(entry["rank"])
        return EUGenConfig(entry["num_features"], phi=entry["phi"], use_norm=False)
    except (ValueError, TypeError) as error:
        raise UsageError(f"--plan {where}: {first_line(error)}") from None


def _check_keys(found: dict[str, Any], known: tuple[str, ...], required: tuple[str, ...], where: str) -> None:
    for key in found:
        if key not in known:
            raise UsageError(f"--plan {where}: has the unknown key {key!r}, expected of {', '.join(known)}")
    for key in required:
        if key not in found:
            raise UsageError(f"--plan {where}: lacks the key {key!r}")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"--plan {where}: is a {type(value).__name__}, expected an object")
    return value
