"""The end of a distillation: a student polished end to end, on the photographs' rays or on another run's pictures."""

import time
from collections.abc import Callable

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
    pictures = teacher_pictures(settings, run, manager) if settings.refine_teacher else None

    def draw(number: int, num_rays: int) -> tuple[RayBundle, dict[str, Tensor]]:
        if pictures is None:
            return training_batch(manager, settings.seed, number, num_rays)
        return own_part(*pictures.batch(number, num_rays))

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


def training_batch(
    manager: VanillaDataManager, seed: int, number: int, num_rays: int
) -> tuple[RayBundle, dict[str, Tensor]]:
    """This process's part of training batch `number`: the same rays whenever it is asked for."""
    torch.manual_seed(hash_seed(seed, "batch", number))
    assert manager.train_pixel_sampler is not None
    manager.train_pixel_sampler.set_num_rays_per_batch(num_rays)
    return own_part(*manager.next_train(number))


def own_part(rays: RayBundle, batch: dict[str, Tensor]) -> tuple[RayBundle, dict[str, Tensor]]:
    """This process's part of a batch."""
    part = slice(rank(), None, world_size())
    return rays[part], {name: value[part] for name, value in batch.items()}


def teacher_pictures(settings: DistillSettings, run: Run, manager: VanillaDataManager) -> TeacherPictures:
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
    return TeacherPictures(teacher_of(other), cameras, settings.refine_novel_poses, settings.seed)
