"""Plans put to the test: distilled in closed form, rendered beside the teacher, timed in turn with it."""

import copy
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from eugen3d.cli.teacher_rows import hash_seed
from eugen3d.cli.teachers import NerfTeacher
from eugen3d.cli.views import Views
from eugen3d.distill import Distiller, FieldLoss, FitConfig, LayerwiseConfig, Network, Plan, RecordedNetwork, Rows

TIMED_TURNS = 3  # how often a view is rendered by both
MIN_MSE = 1e-12  # of a picture in [0, 1]: a PSNR of 120 dB


@dataclass(frozen=True)
class Trial:
    """What was measured on a plan."""

    psnr_drop: float
    """dB by which the mean PSNR of the views is below the teacher's."""
    difference: float
    """Mean squared difference from the teacher's own pictures, which photographs' noise is no part of."""
    speedup: float | None
    """The teacher's time over the student's, the median of several turns; None where it was not asked for."""


class Trials:
    """Measures plans of one teacher.

    Args:
        teacher: the teacher's model.
        networks: its networks, which see the rows again for every plan.
        rows: where the plans are solved.
        views: what is rendered, and the numbers of the views.
        seed: of the draws.
        with_speed: whether renderings are timed.
    """

    def __init__(
        self,
        teacher: NerfTeacher,
        networks: Mapping[str, Network],
        rows: Mapping[str, Rows],
        views: tuple[Views, list[int]],
        seed: int,
        with_speed: bool,
    ) -> None:
        self.teacher, self.rows, self.seed, self.with_speed = teacher, rows, seed, with_speed
        self.networks = {part: RecordedNetwork(network) for part, network in networks.items()}
        self.views, self.indices = views
        self._pictures: dict[int, Tensor] = {}

    def measure(self, plan: Plan) -> Trial:
        """Distil a plan in closed form, and render it.

        Raises:
            ValueError: the rows are too few for a layer, or hold values that are not finite.
        """
        student = self._assembled(self._solve(plan))
        pairs = [(self._teacher_picture(index), student.render(self._camera(index))) for index in self.indices]
        drops = [
            self._psnr(index, theirs) - self._psnr(index, ours)
            for index, (theirs, ours) in zip(self.indices, pairs, strict=True)
        ]
        difference = statistics.fmean(float((theirs - ours).square().mean()) for theirs, ours in pairs)
        return Trial(statistics.fmean(drops), difference, self._speedup(student) if self.with_speed else None)

    def _teacher_picture(self, index: int) -> Tensor:
        """The teacher's picture of a view; rendered once."""
        if index not in self._pictures:
            self._pictures[index] = self.teacher.render(self._camera(index))
        return self._pictures[index]

    def _solve(self, plan: Plan) -> dict[str, Network]:
        students = {}
        for part, network in self.networks.items():
            layers = {site: LayerwiseConfig(layer) for site, layer in plan.get(part, {}).items()}
            students[part] = network.copy()
            distiller = Distiller(network, students[part], layers, self.rows[part], FitConfig(), FieldLoss)
            for task in distiller.tasks:
                distiller.run(task, torch.Generator().manual_seed(hash_seed(self.seed, f"{part}.{task}")))
        return students

    def _assembled(self, students: Mapping[str, Network]) -> NerfTeacher:
        """The teacher's model with the students in the place of its networks."""
        model = copy.deepcopy(self.teacher.model)
        for part, path in self.teacher.paths.items():
            parent, _, key = path.rpartition(".")
            model.get_submodule(parent)._modules[key] = students[part].module
        return type(self.teacher)(model)

    def _psnr(self, index: int, picture: Tensor) -> float:
        reference = self.teacher.blend(self.views.reference(index)).to(picture.device)
        return -10 * math.log10(max(float((picture - reference).square().mean()), MIN_MSE))

    def _camera(self, index: int) -> Cameras:
        return self.views.camera(index).to(self.teacher.model.device)

    def _speedup(self, student: NerfTeacher) -> float:
        """The median ratio of seconds, a view rendered by both in turn; both have rendered it before."""
        camera = self._camera(self.indices[0])
        turns = [[one.timed_render(camera)[1] for one in (self.teacher, student)] for _ in range(TIMED_TURNS)]
        return statistics.median(theirs / ours for theirs, ours in turns)
