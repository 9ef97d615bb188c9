"""Swap the dense layers of a torch model for layers of another kind, and report on what a model is made of."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eugen3d.layers.calibration import collect_inputs
from eugen3d.layers.comparison import relative_errors
from eugen3d.layers.config import LayerConfig, LinearConfig
from eugen3d.layers.features import Phi
from eugen3d.layers.kind import KindConfig, carry_over
from eugen3d.layers.patterns import Followed, Patterns, find_activations
from eugen3d.layers.refusals import refuse_hooked, refuse_tied, refuse_unfit
from eugen3d.layers.registry import kind_of, layer_from_linear, make_layer
from eugen3d.layers.structure import as_linear, is_conv1d, is_dense_like, is_plain_dense, num_products

Filter = Callable[[nn.Module, str], bool]

ROWS_PER_UNKNOWN = 8
"""Sample rows kept per unknown (inputs, inner width and a constant) of a layer's fit."""


def convert(
    model: nn.Module,
    config: KindConfig | LayerConfig,
    filter_fn: Filter | None = None,
    inputs: Any = None,
    patterns: Patterns | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Replace the dense layers of a model by layers made from them, in place, and return the model.

    Dense layers are `nn.Linear` and the `Conv1D` of transformers' GPT-2. The activation that follows one goes into the
    new layer, and `nn.Identity` stands where it stood, if the kind has its activation inside and the structure says
    what follows: in an `nn.Sequential`, and in the classes of `eugen3d.layers.patterns`. It stays where it is beside a
    kind that has none (low rank, EUGen with Φ = identity), and if it is none of Φ's functions (GELU's tanh form).

    A module that stands at several places is replaced once, if any of its names matches, and stays shared; a model
    that is itself a dense layer comes back replaced. Training flag, device, dtype and requires_grad carry over. The
    `out_proj` of `nn.MultiheadAttention`, of which only the weight is used, is left alone, and so are layers that were
    replaced before. The new layers start as `layer_from_linear` makes them, which is approximate for every kind but
    the sine: train or distil them. On the meta device, where there is nothing to start from, they are drawn: such a
    model can be counted.

    Args:
        config: the kind and settings of the new layers: that of a kind, or a `LayerConfig` which chooses one.
        filter_fn: takes a dense layer and its fully qualified name, says whether to replace it; all by default.
        inputs: positional arguments of the model's forward pass, a tensor or a tuple. Every layer is then fitted on
            the rows that it sees in this pass, at most `ROWS_PER_UNKNOWN` (in_features + inner_width + 1) of them,
            evenly spaced; otherwise without rows, or on standard normal ones.
        patterns: classes that the tables of `eugen3d.layers.patterns` lack: `{MyBlock: Pattern("up", "act", "down")}`,
            `{MyActivation: "relu"}`.
        generator: source of the random draws; the global one by default.

    Raises:
        ValueError: when the kind is "linear"; when nothing matches, naming the dense layers seen; or a matching layer
            cannot be replaced: it has hooks or parametrisations (weight_norm, spectral_norm), which would be lost; it
            is quantised, carries adapters or is another subclass; it shares a parameter with another module; the kind
            cannot stand for it (a sine layer for what no sine follows); or `inputs` do not determine its fit. The
            model is then as it was.
    """
    chosen = config.chosen if isinstance(config, LayerConfig) else config
    if isinstance(chosen, LinearConfig):
        raise ValueError("the layer kind is 'linear', expected another: the layers are dense already")
    seen = _dense_layers(model)
    matching = [(name, module) for name, module in seen if filter_fn is None or filter_fn(module, name)]
    if not matching:
        listed = ", ".join(name or "(the model itself)" for name, _ in seen) or "none"
        raise ValueError(f"no dense layer matched; the model's dense layers: {listed}")
    names: dict[nn.Module, str] = {}
    for name, module in matching:
        names.setdefault(module, name)
    for module, name in names.items():
        refuse_unfit(name or "(the model itself)", module)
    refuse_tied(model, names)
    followed = find_activations(model, names, patterns) if chosen.includes_activation else {}
    for activation in followed.values():
        refuse_hooked(model, activation.slots)
    rows = {} if inputs is None else collect_inputs(model, inputs, _limits(names, chosen))
    replacements: dict[nn.Module, nn.Module] = {}
    for module, name in names.items():
        if inputs is not None and module not in rows:
            raise ValueError(
                f"{name}: is not run by the inputs, expected every layer to be; leave it out with filter_fn"
            )
        activation = followed[module].phi if module in followed else "identity"
        replacements[module] = _replace(name, as_linear(module), activation, chosen, rows.get(module), generator)
    return _swap(model, replacements, followed.values())


def layer_status(
    model: nn.Module, reference: nn.Module | None = None, inputs: Any = None, patterns: Patterns | None = None
) -> list[dict[str, Any]]:
    """Describe the layers of a model, of whatever kind, one row each.

    Args:
        reference: the model before conversion. With `inputs` for a forward pass of both, every row has the relative
            error ‖y − y_reference‖ / ‖y_reference‖ of that layer's output; the layers are matched by name. Where the
            activation went into a layer, it is compared with the reference's layer and activation together.
        inputs: positional arguments of the forward pass, a tensor or a tuple of tensors.
        patterns: those that the model was converted with.

    Returns:
        Rows with keys `name`, `kind` (its name in the registry), `num_parameters`, `flops` (two per product, for one
        input row) and `relative_error` (None where it was not measured).
    """
    layers = {name: module for name, module in model.named_modules() if _kind(module)}
    layers = {name: m for name, m in layers.items() if not any(_inside(name, n) for n in layers if n != name)}
    errors = {} if reference is None or inputs is None else relative_errors(model, reference, inputs, layers, patterns)
    return [
        {
            "name": name,
            "kind": _kind(module),
            "num_parameters": sum(p.numel() for p in module.parameters()),
            "flops": 2 * num_products(module),
            "relative_error": errors.get(name),
        }
        for name, module in layers.items()
    ]


def _replace(
    name: str,
    linear: nn.Linear,
    activation: Phi,
    config: KindConfig,
    inputs: Tensor | None,
    generator: torch.Generator | None,
) -> nn.Module:
    """The new layer for one dense layer; what goes wrong names the layer."""
    if linear.weight.is_meta:
        layer = make_layer(config, linear.in_features, linear.out_features)[0].to(linear.weight)
        carry_over(linear, layer)
        return layer
    try:
        return layer_from_linear(linear, activation, config, inputs, generator)
    except ValueError as error:
        raise ValueError(f"{name or '(the model itself)'}: {error}") from error


def _swap(model: nn.Module, replacements: Mapping[nn.Module, nn.Module], followed: Iterable[Followed]) -> nn.Module:
    """Put every new layer wherever its dense layer stood, and the identity where an activation went into it."""
    if model in replacements:
        return replacements[model]
    _leave_fused_paths(model, replacements)
    for slot in (slot for activation in followed for slot in activation.slots):
        if slot.module is not None:
            slot.parent._modules[slot.key] = nn.Identity().train(slot.module.training)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    return model


def _leave_fused_paths(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Make torch's transformer call its layers: its fused evaluation path reads the weights of `nn.Linear`."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and {module.linear1, module.linear2} & replacements.keys():
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder) and any(part in replacements for part in module.modules()):
            module.use_nested_tensor = False


def _limits(names: Iterable[nn.Module], config: KindConfig) -> dict[nn.Module, int]:
    """How many sample rows are kept for the fit of every layer."""
    return {module: ROWS_PER_UNKNOWN * (as_linear(module).in_features + config.inner_width + 1) for module in names}


def _dense_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """What passes for a dense layer, by every name that it has, less what larger layers are made of."""
    parts = {
        part
        for layer in model.modules()
        if _is_replacement(layer) or (is_dense_like(layer) and not is_plain_dense(layer))
        for part in layer.modules()
        if part is not layer
    }
    projections = {layer.out_proj for layer in model.modules() if isinstance(layer, nn.MultiheadAttention)}
    return [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if is_dense_like(module) and not _is_replacement(module) and module not in parts | projections
    ]


def _is_replacement(module: nn.Module) -> bool:
    return kind_of(module) not in (None, "linear")


def _kind(module: nn.Module) -> str | None:
    return "linear" if is_conv1d(module) else kind_of(module)


def _inside(name: str, container: str) -> bool:
    return name.startswith(container + ".") or container == ""
