"""What the commands need to know of a run's model, whichever of the known ones it is."""

from eugen3d.cli.errors import UsageError
from eugen3d.cli.nerf_teachers import EUGenNerfTeacher, EUGenZipNerfTeacher, NerfTeacher
from eugen3d.cli.runs import Run
from eugen3d.cli.stock_teachers import FIELDS, StockTeacher
from eugen3d.models.nerf import EUGenNerfModel
from eugen3d.models.stacks import set_runtime, to_stacks
from eugen3d.models.zipnerf import EUGenZipNerfModel

__all__ = ["NerfTeacher", "teacher_of"]


def teacher_of(run: Run) -> NerfTeacher:
    """What the commands need to know of a run's model, whose MLPs become stacks.

    Raises:
        UsageError: the model is of a class that is not known here, or its MLPs are no torch modules.
    """
    model = run.pipeline.model
    if isinstance(model, EUGenNerfModel):
        return EUGenNerfTeacher(model)
    if isinstance(model, EUGenZipNerfModel):
        return EUGenZipNerfTeacher(model)
    if not isinstance(model, tuple(FIELDS)) or getattr(model, "temporal_distortion", None) is not None:
        known = "eugen-nerf, eugen-zipnerf, vanilla-nerf, mipnerf, nerfacto, tensorf or neus"
        raise UsageError(f"{run.checkpoint}: method {run.config.method_name!r}, expected {known}")
    try:
        to_stacks(model)
    except ValueError as error:
        raise UsageError(f"{run.checkpoint}: {error}") from None
    set_runtime(model, None)
    return StockTeacher(model)
