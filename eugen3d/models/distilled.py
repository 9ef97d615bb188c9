"""DistilledModelConfig: any nerfstudio model with some of its layers exchanged, as `eugen3d distill` leaves it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from nerfstudio.models.base_model import Model, ModelConfig
from torch import nn

from eugen3d.layers import KindConfig, fold, place_drawn
from eugen3d.metrics.lazy_lpips import lazy_lpips
from eugen3d.models.stacks import set_runtime, to_stacks
from eugen3d.runtime import Backend


@dataclass
class DistilledModelConfig(ModelConfig):
    """A teacher's configuration, and what stands in the place of its layers.

    What it sets up is the teacher's own model, its MLPs as stacks; nothing of its class has to know of distillation.
    """

    teacher: ModelConfig = field(default_factory=ModelConfig)
    """The configuration of the model that was distilled."""
    layers: dict[str, KindConfig] = field(default_factory=dict)
    """Kind and settings of the layers that were replaced, by the names of their sites in the model."""
    merged: bool = False
    """Whether the model is kept folded, as a refinement leaves it."""
    runtime: Backend = "eager"
    """How the folded stacks are evaluated when a model of nerfstudio's renders; eugen3d's own have a setting of it."""

    @classmethod
    def of(cls, teacher: ModelConfig) -> "DistilledModelConfig":
        """The configuration of a teacher's student in which no layer is replaced yet; its MLPs are torch modules."""
        if hasattr(teacher, "implementation"):
            teacher = dataclasses.replace(teacher, implementation="torch")  # pyright: ignore[reportCallIssue]
        return cls(teacher=teacher, eval_num_rays_per_chunk=teacher.eval_num_rays_per_chunk)

    def setup(self, **kwargs: Any) -> Model:
        """Build the model with freshly drawn layers. It loads strictly, and needs no backbone of LPIPS.

        Raises:
            ValueError: the teacher's model has no such layer.
        """
        teacher = dataclasses.replace(self.teacher, eval_num_rays_per_chunk=self.eval_num_rays_per_chunk)
        with lazy_lpips():
            model = teacher.setup(**kwargs)
        to_stacks(model)
        place_drawn(model, self.layers)
        if self.merged:
            fold(model)
        set_runtime(model, self.runtime)
        model.load_state_dict = MethodType(_load_strictly, model)
        return model


def settings_of(config: ModelConfig) -> Any:
    """What a model is set up with beside its layers: of a student the teacher's configuration, else its own."""
    return config.teacher if isinstance(config, DistilledModelConfig) else config


def _load_strictly(model: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
    """Load strictly, always: nerfstudio would otherwise fall back to a partial load without a word."""
    return type(model).load_state_dict(model, state_dict, strict=True, assign=assign)
