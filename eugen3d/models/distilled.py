"""DistilledModelConfig: any nerfstudio model with some of its layers exchanged, as `eugen3d distill` leaves it."""

from dataclasses import dataclass, field
from typing import Any

from nerfstudio.models.base_model import Model, ModelConfig

from eugen3d.layers import KindConfig, fold, place_drawn


@dataclass
class DistilledModelConfig(ModelConfig):
    """A teacher's configuration, and what stands in the place of its layers.

    What it sets up is the teacher's own model; nothing of its class has to know of distillation.
    """

    teacher: ModelConfig = field(default_factory=ModelConfig)
    """The configuration of the model that was distilled."""
    layers: dict[str, KindConfig] = field(default_factory=dict)
    """Kind and settings of the layers that were replaced, by the names of their sites in the model."""
    merged: bool = False
    """Whether the model is kept folded, as a refinement leaves it."""

    def setup(self, **kwargs: Any) -> Model:
        """Build the model with freshly drawn layers.

        Raises:
            ValueError: the teacher's model has no such layer.
        """
        model = self.teacher.setup(**kwargs)
        place_drawn(model, self.layers)
        if self.merged:
            fold(model)
        return model
