"""The flags of `eugen3d distill`, and what they say of the layers."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eugen3d.cli.errors import UsageError
from eugen3d.cli.renders import file_hash
from eugen3d.cli.teacher_rows import SamplingConfig
from eugen3d.distill import FitConfig, FitTarget, LayerwiseConfig, Start
from eugen3d.layers import EUGenConfig, KindConfig, LowRankConfig, SNNKConfig
from eugen3d.layers.features import Phi
from eugen3d.training.distributed import world_size

StudentKind = Literal["eugen", "low-rank", "snnk", "narrow"]

PLANNED_FLAGS = ("kind", "num_features", "order", "layers", "coarse_layers", "phi", "use_norm")
NARROW_LEARNING_RATE = 3e-3
SHARE_OF_WIDTH = 4
"""A layer of so many neurons has one feature for each, where --num-features does not say otherwise."""


@dataclass
class DistillSettings:
    """What is distilled, into what, and how hard it is tried."""

    load_config: Path
    """The teacher's config.yml."""
    output_dir: Path
    """Run folder to make for the student."""
    kind: StudentKind = "eugen"
    """Kind of the new layers; narrow takes none, but a plain network of that width, trained at the same rows."""
    num_features: int | None = None
    """m: features per degree of every new layer; of low rank and phi identity the rank, of a narrow network the width.
    By default a quarter of a layer's width: 64 where it has 256 neurons."""
    order: int = 1
    """k: highest degree of the products of projections."""
    layers: tuple[str, ...] = ("auto",)
    """Hidden layers to replace, by index or name. auto takes those as wide as their inputs, that is all but the first
    and the one after a skip connection, and every hidden layer of a field that has fewer than two such; none takes
    none, to refine what was distilled before."""
    coarse_layers: tuple[str, ...] = ("same",)
    """Those of the coarse field, which only says where the fine one looks and can do with less."""
    plan: Path | None = None
    """A plan.json of `eugen3d plan`, which says what to replace, by what and how large, in the place of these flags."""
    phi: Phi | None = None
    """Map of the features, by default the activation that the layer has; identity keeps the activation outside, which
    is activation-aware low rank."""
    projection: Start = "picked"
    """Where projections start: the teacher's own neurons that tell most of what is read from them, or a random draw."""
    use_norm: bool = False
    """Project the input's norm too."""
    fit_steps: int = 0
    """Gradient steps on every layer alone, at the rows; 0 for the closed form. On a narrow network all of them at
    once."""
    fit_sweeps: int = 2
    """Further rounds of as many steps over all layers, replaced or dense, one at a time."""
    fit_target: FitTarget = "output"
    """What such a step brings near the teacher's: the field's opacity and colour, or the layer's own outputs by Huber's
    loss, as in the paper."""
    fit_learning_rate: float | None = None
    """About the share by which a layer's outputs change in such a step, by default 1e-3; of a narrow network Muon's
    learning rate, 3e-3."""
    refine_steps: int = 0
    """Gradient steps end to end on the photographs' rays, over the folded student; at the sizes at which rows come
    from them."""
    refine_num_rays: int = 512
    """Rays per such step."""
    refine_learning_rate: float = 4e-4
    """About the share by which a layer's outputs change in such a step."""
    refine_patience: int = 3
    """After so many checks, one every 50 steps, none of which was the best so far, the refinement goes on from the best
    with smaller steps; where it did so three times without a gain it ends."""
    refine_teacher: Path | None = None
    """A config.yml whose pictures are refined on, at any pixel of any pose, in the place of the photographs."""
    refine_novel_poses: float = 0.5
    """Share of these poses that no camera had: they lie between neighbouring ones."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Where the rows come from."""
    seed: int = 0
    """Seed of rays, draws and batches."""
    device: str = "cpu"
    """cpu or cuda."""

    def check(self) -> None:
        """Refuse settings that cannot be used, before anything is loaded."""
        if self.output_dir.exists():
            raise UsageError(f"--output-dir {self.output_dir}: exists already, expected a folder to be made")
        self._refuse_beside_plan()
        for name, least in (
            ("fit_steps", 0),
            ("fit_sweeps", 0),
            ("refine_steps", 0),
            ("refine_num_rays", world_size()),
            ("refine_patience", 1),
        ):
            if getattr(self, name) < least:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag}: is {getattr(self, name)}, expected {least} or more")
        if not 0 <= self.refine_novel_poses <= 1:
            raise UsageError(f"--refine-novel-poses: is {self.refine_novel_poses}, expected 0 to 1")
        if self.refine_teacher and not self.refine_steps:
            raise UsageError("--refine-teacher: found no --refine-steps, expected some")
        if self.refine_teacher and not self.refine_teacher.is_file():
            raise UsageError(f"--refine-teacher {self.refine_teacher}: not found, expected a run's config.yml")
        if self.layers == ("none",) and not self.refine_steps:
            raise UsageError("--layers none: found no --refine-steps, expected some: there is nothing to do")
        if self.kind == "narrow" and not self.fit_steps and self.layers != ("none",):
            raise UsageError("--kind narrow: found no --fit-steps, expected some: it has no closed form")
        if self.kind == "narrow" and self.fit_target == "layer":
            raise UsageError(
                "--fit-target layer: found beside --kind narrow, whose layers stand for none of the teacher's"
            )
        self.layerwise(SHARE_OF_WIDTH)

    def layerwise(self, width: int, activation: Phi = "relu") -> LayerwiseConfig:
        """How a layer of so many neurons is found.

        Args:
            activation: what follows it; the identity where nothing does.
        """
        num_features = max(1, width // SHARE_OF_WIDTH) if self.num_features is None else self.num_features
        try:
            return LayerwiseConfig(self._layer(num_features, activation), self.projection)
        except ValueError as error:
            message = str(error).replace("rank", "num_features") if self.kind == "low-rank" else str(error)
            raise UsageError(f"--{message.replace('_', '-')}") from None

    def fit_config(self) -> FitConfig:
        """How long, and how fast, layers are fitted, or a narrow network is trained."""
        rate = self.fit_learning_rate
        if rate is None:
            rate = NARROW_LEARNING_RATE if self.kind == "narrow" else FitConfig.learning_rate
        return FitConfig(self.fit_steps, self.fit_sweeps, self.fit_target, learning_rate=rate)

    def of_call(self, checkpoint: Path) -> dict[str, Any]:
        """What has to be the same for an interrupted run to be continued.

        Args:
            checkpoint: the teacher's.
        """
        settings = dataclasses.asdict(self)
        for key in ("load_config", "output_dir", "device"):
            settings.pop(key)
        for key in ("plan", "refine_teacher"):
            file = getattr(self, key)
            settings[key] = None if file is None else file_hash(file)
        stat = checkpoint.stat()
        settings["processes"] = world_size()
        return settings | {"layers": list(self.layers), "teacher": [checkpoint.name, stat.st_size, stat.st_mtime]}

    def _layer(self, num_features: int, activation: Phi) -> KindConfig:
        if self.kind == "low-rank":
            return LowRankConfig(num_features)
        if self.kind == "snnk":
            return SNNKConfig(num_features)
        phi = self.phi or ("relu" if activation == "identity" else activation)
        return EUGenConfig(num_features, self.order, phi, self.use_norm)

    def _refuse_beside_plan(self) -> None:
        """Refuse flags that say what a plan says."""
        if self.plan is None:
            return
        for name in PLANNED_FLAGS:
            default = next(field.default for field in dataclasses.fields(self) if field.name == name)
            if (value := getattr(self, name)) != default:
                found = " ".join(value) if isinstance(value, tuple) else str(value)
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag} {found}: found beside --plan, which says it already; expected one of the two")
