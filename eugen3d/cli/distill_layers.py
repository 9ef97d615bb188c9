"""Which layers `eugen3d distill` replaces, by what: as its flags or a plan have it."""

import math
from collections.abc import Mapping
from pathlib import Path

from nerfstudio.models.base_model import ModelConfig
from rich.console import Console

from eugen3d.cli.distill_settings import DistillSettings
from eugen3d.cli.errors import UsageError
from eugen3d.cli.plan_file import read_plan
from eugen3d.cli.renders import file_hash
from eugen3d.distill import HELD_OUT, LayerwiseConfig, Network, rows_needed
from eugen3d.layers import LayerConfig
from eugen3d.models.distilled import DistilledModelConfig

Chosen = dict[str, dict[str, LayerwiseConfig]]
"""How layers are replaced, by network and site."""


def choose_layers(
    settings: DistillSettings, model: ModelConfig, checkpoint: Path, networks: Mapping[str, Network]
) -> Chosen:
    """Layers to replace, for every network; none at all for a refinement alone.

    Args:
        model: the run's.
        checkpoint: the run's, which a plan was made for.

    Raises:
        UsageError: what is asked for is not there, or the run's layers have been replaced already.
    """
    if settings.layers == ("none",):
        return {}
    kind = replaced_kind(model)
    if kind is not None:
        raise UsageError(
            f"{settings.load_config}: its layers are {kind!r} already, expected 'linear' ones; --layers none refines it"
        )
    if settings.plan is not None:
        return _planned_layers(settings, settings.plan, checkpoint, networks)
    chosen: Chosen = {}
    for part, network in networks.items():
        flag, layers = "--layers", settings.layers
        if part == "coarse" and settings.coarse_layers != ("same",):
            flag, layers = "--coarse-layers", settings.coarse_layers
        try:
            names = network.chosen(None if layers == ("auto",) else layers)
        except ValueError as error:
            raise UsageError(f"{flag}: {error}") from None
        if not names:
            raise UsageError(f"{settings.load_config}: {part} has no dense layer to replace, expected at least one")
        chosen[part] = {
            name: settings.layerwise(network.dense(name).out_features, network.sites[name].phi) for name in names
        }
    return chosen


def needed_rows(networks: Mapping[str, Network], chosen: Chosen) -> int:
    """Rows of a network that no solve can do without, those that are held out included."""
    most = max(
        rows_needed(one.layer, networks[part].dense(site).in_features)
        for part, layers in chosen.items()
        for site, one in layers.items()
    )
    return math.ceil(most * HELD_OUT / (HELD_OUT - 1))


def replaced_kind(model: ModelConfig) -> str | None:
    """The kind of the layers that stand where dense ones would; None where all are dense."""
    if isinstance(model, DistilledModelConfig):
        return "distilled"
    layer = getattr(model, "layer", None)
    return layer.kind if isinstance(layer, LayerConfig) and layer.kind != "linear" else None


def _planned_layers(settings: DistillSettings, path: Path, checkpoint: Path, networks: Mapping[str, Network]) -> Chosen:
    """Layers to replace as a plan has them."""
    plan, teacher = read_plan(path, networks)
    if teacher != file_hash(checkpoint):
        Console().print(f"{path}: was made for another checkpoint of such layers", style="yellow", soft_wrap=True)
    return {
        part: {
            site: LayerwiseConfig(plan[part][site], settings.projection)
            for site in network.sites
            if site in plan.get(part, {})
        }
        for part, network in networks.items()
    }
