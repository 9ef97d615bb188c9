"""nerfstudio's methods by name, looked up where they are needed: its module of them takes seconds to import."""

from collections.abc import Mapping

from nerfstudio.engine.trainer import TrainerConfig


def known_methods() -> Mapping[str, TrainerConfig]:
    """The methods that `ns-train` lists, with their default configurations."""
    from nerfstudio.configs.method_configs import all_methods

    return all_methods
