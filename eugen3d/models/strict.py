"""A model that loads whole checkpoints or none."""

from collections.abc import Mapping
from typing import Any

from nerfstudio.models.base_model import Model


class StrictModel(Model):
    """nerfstudio's model, loaded strictly, always: it would otherwise fall back to a partial load without a word."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """Load strictly, whatever is asked for."""
        return super().load_state_dict(state_dict, strict=True, assign=assign)
