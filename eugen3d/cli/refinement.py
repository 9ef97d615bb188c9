"""The end of a distillation: a student polished end to end, on the photographs' rays or on another run's pictures."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from rich.console import Console
from torch import Tensor, nn

from eugen3d.cli.distill_progress import DistillProgress
from eugen3d.cli.distill_settings import DistillSettings
from eugen3d.cli.errors import UsageError
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.runs import Run, load_run
from eugen3d.cli.teacher_pictures import TeacherPictures
from eugen3d.cli.teacher_rows import hash_seed
from eugen3d.cli.teachers import NerfTeacher, teacher_of
from eugen3d.datasets.reduced import ReducedRayGenerator, reduce_image
from eugen3d.distill import RefineConfig, RefineState, refine
from eugen3d.layers import fold
from eugen3d.training.distributed import all_reduce_sum, rank, world_size

CONSOLE = Console()
VALIDATION_RAYS = 2048


def refine_student(settings: DistillSettings, run: Run, teacher: NerfTeacher, progress: DistillProgress) -> None:
    """Polish the folded student, in place; interrupted, it goes on from its last check.

    Args:
        teacher: the student's model, not folded yet.

    Raises:
        UsageError: the loss is not finite, or the run whose pictures are to be refined on is of no use.
    """
    student = teacher.model
    fold(student)
    teacher.train_dense_alone()
    manager = run.pipeline.datamanager
    assert isinstance(manager, VanillaDataManager)
    scales = settings.sampling.scales(teacher, manager.train_dataset.cameras)
    if settings.refine_teacher:
        pictures = teacher_pictures(settings, run, manager, scales)
    else:
        pictures = Photographs(manager, scales, settings.seed)

    def draw(number: int, num_rays: int) -> tuple[RayBundle, dict[str, Tensor]]:
        rays, batch = pictures.batch(number, num_rays)
        part = slice(rank(), None, world_size())
        return rays[part], {name: value[part] for name, value in batch.items()}

    validation = draw(1, VALIDATION_RAYS)

    def train_loss(step: int) -> Tensor:
        rays, batch = draw(2 + step, settings.refine_num_rays)
        torch.manual_seed(hash_seed(settings.seed, "jitter", step, rank()))
        student.train()
        losses = teacher.losses(rays, batch).values()
        return sum(losses, torch.zeros(())) * (len(rays) * world_size() / settings.refine_num_rays)

    def validation_loss() -> float:
        rays, batch = validation
        student.eval()
        with torch.no_grad():
            loss = teacher.color_loss(rays, batch)
        return float(all_reduce_sum(loss.double() * len(rays) / VALIDATION_RAYS))

    polish(settings, student, train_loss, validation_loss, progress)


def polish(
    settings: DistillSettings,
    student: nn.Module,
    train_loss: Callable[[int], Tensor],
    validation_loss: Callable[[], float],
    progress: DistillProgress,
) -> None:
    """Refine a folded student, in place, from where an interrupted call left it.

    Args:
        train_loss: of a step's own batch.

    Raises:
        UsageError: the loss is not finite.
    """
    state = progress.restore_refine(student)
    config = RefineConfig(settings.refine_steps, settings.refine_learning_rate, patience=settings.refine_patience)
    with progress_bar(CONSOLE, transient=False) as bar:
        task = bar.add_task("refining end to end", total=settings.refine_steps, completed=state.step)
        start = time.perf_counter()

        def on_step(state: RefineState) -> None:
            nonlocal start
            bar.update(task, completed=state.step)
            if state.step % config.check_every == 0:
                progress.seconds["refine"] += time.perf_counter() - start
                start = time.perf_counter()
                progress.save_refine(student, state)

        try:
            refine(student, train_loss, validation_loss, config, state, on_step)
        except ValueError as error:
            raise UsageError(f"{settings.load_config}: --refine-steps: {error}") from None
        progress.seconds["refine"] += time.perf_counter() - start


class Photographs:
    """Batches of training rays with what the photographs show there, as many at each of several sizes.

    Args:
        scales: factors by which the photographs are reduced, by their mean over whole pixels.

    Raises:
        UsageError: they have masks, and are to be reduced.
    """

    def __init__(self, manager: VanillaDataManager, scales: Sequence[int], seed: int) -> None:
        self.manager, self.scales, self.seed = manager, scales, seed
        self.generate = ReducedRayGenerator(manager.train_dataset.cameras.to(manager.device), scales)
        self._images: dict[str, Any] = {}
        self._reduced: list[dict[str, Any]] = []

    def batch(self, number: int, num_rays: int) -> tuple[RayBundle, dict[str, Tensor]]:
        """Rays and their `image` (n, 3 or 4), alpha being straight; the same ones whenever this number is asked for."""
        torch.manual_seed(hash_seed(self.seed, "batch", number))
        sampler = self.manager.train_pixel_sampler
        assert sampler is not None
        batches = []
        # even shares: of photographs of different sizes nerfstudio's sampler draws pixels in pairs
        ends = [num_rays // 2 * part // len(self.scales) * 2 for part in range(len(self.scales))] + [num_rays]
        for part, images in enumerate(self._at_scales()):
            if count := ends[part + 1] - ends[part]:
                sampler.set_num_rays_per_batch(count)
                batches.append(sampler.sample(images))
                batches[-1]["indices"][:, 0] += part * self.generate.num_views
        batch = {name: torch.cat([each[name] for each in batches]) for name in batches[0]}
        return self.generate(batch["indices"]), batch

    def _at_scales(self) -> list[dict[str, Any]]:
        """The images that the manager draws from at the moment, at every scale."""
        images = next(self.manager.iter_train_image_dataloader)
        assert images is not None
        if images is not self._images:
            if "mask" in images and self.scales != (1,):
                raise UsageError(
                    "--sampling.downscale-factor: the photographs have masks, expected 1 to refine on them"
                )
            self._images, self._reduced = images, [_reduce_images(images, scale) for scale in self.scales]
        return self._reduced


def _reduce_images(images: dict[str, Any], scale: int) -> dict[str, Any]:
    """Some images, and which ones they are, reduced."""
    if scale == 1:
        return images
    reduced = [reduce_image(image, scale) for image in images["image"]]
    whole = torch.stack(reduced) if isinstance(images["image"], Tensor) else reduced
    return {"image": whole, "image_idx": images["image_idx"]}


def teacher_pictures(
    settings: DistillSettings, run: Run, manager: VanillaDataManager, scales: Sequence[int]
) -> TeacherPictures:
    """The pictures of the run that `--refine-teacher` names, from around the cameras of this one.

    Raises:
        UsageError: that run cannot be loaded, was trained from other cameras, or has an appearance for each.
    """
    assert settings.refine_teacher is not None
    other = load_run(settings.refine_teacher, str(run.pipeline.model.device), test_mode="test")
    dataset = other.pipeline.datamanager.train_dataset
    assert dataset is not None
    cameras = manager.train_dataset.cameras
    poses, other_poses = cameras.camera_to_worlds, dataset.cameras.camera_to_worlds
    if poses.shape != other_poses.shape or not torch.allclose(poses, other_poses, atol=1e-5):
        raise UsageError(
            f"--refine-teacher {settings.refine_teacher}: its training cameras are other ones than those of "
            f"{settings.load_config}, expected a run of the same scene"
        )
    return TeacherPictures(teacher_of(other), cameras, settings.refine_novel_poses, settings.seed, scales)
