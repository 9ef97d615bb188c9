"""`distill`: a student of any torch module, from batches of its inputs."""

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from eugen3d.distill.distiller import Distiller
from eugen3d.distill.examples import Examples, OutputError, OutputLoss, run_module
from eugen3d.distill.fit import FitConfig, Loss
from eugen3d.distill.layerwise import LayerReport, LayerwiseConfig
from eugen3d.distill.network import Network
from eugen3d.distill.refine import RefineConfig, refine
from eugen3d.layers import detach_weight_norm, remove_weight_norm
from eugen3d.layers.patterns import Patterns
from eugen3d.layers.refusals import refuse_tied, refuse_unfit

Batches = Iterable[Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class DistillConfig:
    """How a module is distilled."""

    layerwise: LayerwiseConfig = field(default_factory=LayerwiseConfig)
    """What stands for a layer, and how it is found."""
    layers: tuple[str, ...] | None = None
    """Names of the layers to replace; by default those that are as wide as their inputs, or every hidden layer where
    fewer than two are."""
    filter_fn: Callable[[nn.Module, str], bool] | None = None
    """Instead of names: takes a dense layer and its name, says whether to replace it."""
    fit: FitConfig = field(default_factory=FitConfig)
    """Gradient steps on one layer at a time, a batch each; none by default."""
    refine: RefineConfig = field(default_factory=RefineConfig)
    """Gradient steps on the replaced layers together, after that; none by default."""
    error: OutputError | None = None
    """What gradients lower: takes the outputs and the teacher's, tuples of tensors; by default their mean squared
    difference relative to the teacher's variance."""
    held_out: float = 0.125
    """Share of the batches that only the reported errors see."""
    patterns: Patterns | None = None
    """Classes of blocks and activations that the tables of `eugen3d.layers.patterns` lack."""
    seed: int = 0
    """Seed of draws and batches."""


@dataclass
class DistillReport:
    """How a module was distilled."""

    layers: list[LayerReport]
    """Every replaced layer's error on batches that no solve saw."""
    unrefined_error: float
    """The outputs' error on those batches before the layers were refined together."""
    output_error: float
    """The outputs' error on them at the end."""
    seconds: dict[str, float]
    """Time spent, by phase: solve, fit, refine."""


def distill(
    model: nn.Module, batches: Batches | Callable[[], Batches], config: DistillConfig | None = None
) -> tuple[nn.Module, DistillReport]:
    """Make a student of a trained module: dense layers replaced one after the other, each fitted to what it sees.

    Every layer is solved in closed form on what the layers before it really give, the dense ones that follow are
    corrected for it, and gradients polish the result where `config` asks for steps. A layer is named as its place in
    the module is, or as the `nn.Sequential` in which it is alone with its activation. Dense layers are `nn.Linear`.

    Args:
        model: stays as it is; it is run in evaluation mode. Weight norm is taken off its layers in the student.
        batches: the module's positional arguments, batch by batch, or a function that gives them. They are kept in
            memory, at least two.
        config: which layers, what stands for them, and how long gradients polish; by default the closed form alone.

    Returns:
        The student, a copy in the same mode, and the errors that it makes. Fold it for inference (`eugen3d.fold`).

    Raises:
        ValueError: a name matches no layer, a layer cannot be replaced (it has hooks, is quantised or shares its
            parameters), or the batches are too few or hold values that are not finite.
    """
    config = config or DistillConfig()
    examples = Examples(batches() if callable(batches) else batches, config.held_out)
    training, _ = examples.split()
    detach_weight_norm(model)
    dense = remove_weight_norm(copy.deepcopy(model)).eval()
    teacher = Network.trace(dense, training.batches()[0], run_module, config.patterns)
    layers = dict.fromkeys(_chosen(teacher, config), config.layerwise)
    distiller = Distiller(
        *(teacher, teacher.copy(), layers, examples, config.fit),
        loss=lambda network, part: OutputLoss(network, part, config.error),
    )
    loss, held_out_loss = distiller.losses
    seconds: dict[str, float] = {"solve": 0.0, "fit": 0.0, "refine": 0.0}
    generator = torch.Generator().manual_seed(config.seed)
    for task in distiller.tasks:
        start = time.perf_counter()
        distiller.run(task, generator)
        seconds["fit" if task.action == "fit" else "solve"] += time.perf_counter() - start
    unrefined_error = held_out_loss.of(distiller.student)
    if config.refine.steps:
        start = time.perf_counter()
        _refine(distiller.student, loss, held_out_loss, config)
        seconds["refine"] = time.perf_counter() - start
    report = DistillReport(distiller.reports(), unrefined_error, held_out_loss.of(distiller.student), seconds)
    return distiller.student.module.train(model.training), report


def _chosen(teacher: Network, config: DistillConfig) -> list[str]:
    """The sites to replace.

    Raises:
        ValueError: nothing matches, or a new layer cannot stand for what does.
    """
    if config.filter_fn is None:
        names = teacher.chosen(config.layers)
    elif config.layers is None:
        names = [name for name in teacher.sites if config.filter_fn(teacher.layer(name), name)]
    else:
        raise ValueError("layers and filter_fn are given, expected one of them")
    if not names:
        raise ValueError(f"no dense layer matched, expected of {', '.join(teacher.sites) or 'a module that has some'}")
    chosen = {teacher.layer(name): name for name in names}
    for layer, name in chosen.items():
        refuse_unfit(name, layer)
    refuse_tied(teacher.module, chosen)
    return names


def _refine(student: Network, loss: Loss, held_out_loss: Loss, config: DistillConfig) -> None:
    """Polish the student's dense and new layers together; all else stays as it is."""
    module = student.module
    flags = {parameter: parameter.requires_grad for parameter in module.parameters()}
    module.requires_grad_(False)
    for name in student.sites:
        student.layer(name).requires_grad_(True)

    def train_loss(step: int) -> Tensor:
        return loss(student, torch.Generator().manual_seed(hash((config.seed, step)) % (1 << 63)), 0)

    refine(module, train_loss, lambda: held_out_loss.of(student), config.refine)
    for parameter, flag in flags.items():
        parameter.requires_grad_(flag)
