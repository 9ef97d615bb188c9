"""Swap the dense layers of a torch model for layers of another kind, and report on what a model is made of."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eugen3d.layers.calibration import collect_inputs
from eugen3d.layers.comparison import relative_errors
from eugen3d.layers.config import EUGenConfig, LayerConfig, LinearConfig
from eugen3d.layers.eugen import EUGenFeatures, EUGenLinear
from eugen3d.layers.features import Phi
from eugen3d.layers.patterns import Followed, Patterns, find_activations
from eugen3d.layers.refusals import refuse_hooked, refuse_tied, refuse_unfit
from eugen3d.layers.structure import as_linear, is_conv1d, is_dense_like, is_plain_dense, num_products

Filter = Callable[[nn.Module, str], bool]

ROWS_PER_UNKNOWN = 8
"""Sample rows kept per unknown (inputs, features and a constant) of a layer's fit."""


def make_layer(
    config: LinearConfig | EUGenConfig, in_features: int, out_features: int, activation: Phi = "relu"
) -> nn.Sequential:
    """Build a hidden layer of any kind together with its activation.

    A dense layer is followed by the activation. An EUGen layer whose Φ is not the identity has it inside; with Φ =
    identity the activation stays outside. Dense layers start as He et al. (2015) have it, which keeps the variance
    through a stack of ReLUs, as the EUGen layers' own start does; torch's default loses it, layer by layer.
    """
    if isinstance(config, LinearConfig):
        linear = nn.Linear(in_features, out_features, bias=config.bias)
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu")
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        return nn.Sequential(linear, make_activation(activation))
    layer = EUGenLinear.from_config(config, in_features, out_features)
    return nn.Sequential(layer, make_activation(activation)) if config.phi == "identity" else nn.Sequential(layer)


def make_activation(activation: Phi) -> nn.Module:
    """The module of an activation; sine and identity, which torch has no module for, are order-1 features' own."""
    modules = {"relu": nn.ReLU, "gelu": nn.GELU, "softplus": nn.Softplus, "identity": nn.Identity}
    if activation not in modules:
        raise ValueError(f"activation {activation!r} has no module, expected one of {', '.join(modules)}")
    return modules[activation]()


def convert(
    model: nn.Module,
    config: EUGenConfig | LayerConfig,
    filter_fn: Filter | None = None,
    inputs: Any = None,
    patterns: Patterns | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Replace the dense layers of a model by layers made from them, in place, and return the model.

    Dense layers are `nn.Linear` and the `Conv1D` of transformers' GPT-2. The activation that follows one goes into the
    new layer, and `nn.Identity` stands where it stood, if Φ is not the identity and the structure says what follows:
    in an `nn.Sequential`, and in the classes of `eugen3d.layers.patterns`. An activation that is none of Φ's functions
    (GELU's tanh form, for one) stays outside.

    A module that stands at several places is replaced once, if any of its names matches, and stays shared; a model
    that is itself a dense layer comes back replaced. Training flag, device, dtype and requires_grad carry over. The
    `out_proj` of `nn.MultiheadAttention`, of which only the weight is used, is left alone. The new layers start as
    `EUGenLinear.from_linear` makes them, which is approximate: train or distil them. On the meta device, where there
    is nothing to start from, they are drawn: such a model can be counted.

    Args:
        config: the kind and settings of the new layers.
        filter_fn: takes a dense layer and its fully qualified name, says whether to replace it; all by default.
        inputs: positional arguments of the model's forward pass, a tensor or a tuple. Every layer is then fitted on
            the rows that it sees in this pass, at most `ROWS_PER_UNKNOWN` (in_features + features + 1) of them, evenly
            spaced; otherwise on standard normal rows.
        patterns: classes that the tables of `eugen3d.layers.patterns` lack: `{MyBlock: Pattern("up", "act", "down")}`,
            `{MyActivation: "relu"}`.
        generator: source of the random draws; the global one by default.

    Raises:
        ValueError: when nothing matches, naming the dense layers seen, or a matching layer cannot be replaced: it has
            hooks or parametrisations (weight_norm, spectral_norm), which would be lost; it is quantised, carries
            adapters or is another subclass; it shares a parameter with another module; or `inputs` do not determine
            its fit. The model is then as it was.
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
    followed = {} if chosen.phi == "identity" else find_activations(model, names, patterns)
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
    """Describe the dense and EUGen layers of a model, one row each.

    Args:
        reference: the model before conversion. With `inputs` for a forward pass of both, every row has the relative
            error ‖y − y_reference‖ / ‖y_reference‖ of that layer's output; the layers are matched by name. Where the
            activation went into a layer, it is compared with the reference's layer and activation together.
        inputs: positional arguments of the forward pass, a tensor or a tuple of tensors.
        patterns: those that the model was converted with.

    Returns:
        Rows with keys `name`, `kind` ("linear" or "eugen"), `num_parameters`, `flops` (two per product, for one
        input row) and `relative_error` (None where it was not measured).
    """
    layers = {name: module for name, module in model.named_modules() if _is_layer(module)}
    layers = {name: m for name, m in layers.items() if not any(_inside(name, n) for n in layers if n != name)}
    errors = {} if reference is None or inputs is None else relative_errors(model, reference, inputs, layers, patterns)
    return [
        {
            "name": name,
            "kind": "linear" if isinstance(module, nn.Linear) or is_conv1d(module) else "eugen",
            "num_parameters": sum(p.numel() for p in module.parameters()),
            "flops": 2 * num_products(module),
            "relative_error": errors.get(name),
        }
        for name, module in layers.items()
    ]


def _layer_from_linear(
    linear: nn.Linear,
    activation: Phi,
    config: EUGenConfig,
    inputs: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """The layer of the configured kind that stands for activation(linear(x)), fitted on rows (n, in_features)."""
    return EUGenLinear.from_linear(linear, activation, config, inputs, generator)


def _replace(
    name: str,
    linear: nn.Linear,
    activation: Phi,
    config: EUGenConfig,
    inputs: Tensor | None,
    generator: torch.Generator | None,
) -> nn.Module:
    """The new layer for one dense layer; what goes wrong names the layer."""
    if linear.weight.is_meta:
        layer = make_layer(config, linear.in_features, linear.out_features)[0].to(linear.weight)
        layer.train(linear.training)
        return layer if linear.weight.requires_grad else layer.requires_grad_(False)
    try:
        return _layer_from_linear(linear, activation, config, inputs, generator)
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


def _limits(names: Iterable[nn.Module], config: EUGenConfig) -> dict[nn.Module, int]:
    """How many sample rows are kept for the fit of every layer."""
    num_features = config.order * config.num_features
    return {module: ROWS_PER_UNKNOWN * (as_linear(module).in_features + num_features + 1) for module in names}


def _dense_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """What passes for a dense layer, by every name that it has, less what larger layers are made of."""
    parts = {
        part
        for layer in model.modules()
        if _is_eugen(layer) or (is_dense_like(layer) and not is_plain_dense(layer))
        for part in layer.modules()
        if part is not layer
    }
    projections = {layer.out_proj for layer in model.modules() if isinstance(layer, nn.MultiheadAttention)}
    return [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if is_dense_like(module) and not _is_eugen(module) and module not in parts | projections
    ]


def _is_eugen(module: nn.Module) -> bool:
    return isinstance(module, EUGenLinear | EUGenFeatures)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module) or _is_eugen(module)


def _inside(name: str, container: str) -> bool:
    return name.startswith(container + ".") or container == ""
