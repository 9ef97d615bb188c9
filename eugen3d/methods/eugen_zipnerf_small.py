"""`ns-train eugen-zipnerf-small`: the same idea in a size that a CPU trains in minutes."""

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from eugen3d.datasets import SceneDataManagerConfig
from eugen3d.fields import HashGridConfig
from eugen3d.models.optimizers import FieldOptimizerConfig
from eugen3d.models.schedules import ExponentialDecayConfig
from eugen3d.models.zipnerf import EUGenZipNerfModelConfig, ZipNerfLossConfig

eugen_zipnerf_small = MethodSpecification(
    config=TrainerConfig(
        method_name="eugen-zipnerf-small",
        max_num_iterations=2000,
        steps_per_save=500,
        steps_per_eval_batch=100,
        steps_per_eval_image=100_000,
        steps_per_eval_all_images=100_000,
        pipeline=VanillaPipelineConfig(
            datamanager=SceneDataManagerConfig(train_num_rays_per_batch=1024, eval_num_rays_per_batch=1024),
            model=EUGenZipNerfModelConfig(
                grid=HashGridConfig(num_levels=8, max_resolution=2048, log2_hashmap_size=19),
                proposal_resolutions=(128, 512),
                num_samples=(32, 32, 16),
                losses=ZipNerfLossConfig(color="mse", hash_decay_mult=0.01, anneal_steps=500),
                eval_num_rays_per_chunk=2048,
            ),
        ),
        optimizers={
            group: {
                "optimizer": FieldOptimizerConfig(kind="adam", lr=lr, eps=1e-15),
                "scheduler": ExponentialDecayConfig(lr_final=3e-3, max_steps=2000, warmup_steps=100),
            }
            for group, lr in (("fields", 1e-2), ("grids", 2e-2))
        },
        viewer=ViewerConfig(num_rays_per_chunk=2048, quit_on_train_completion=True),
        vis="tensorboard",
    ),
    description="eugen-zipnerf with smaller grids and 32 + 32 + 16 samples a ray, for a CPU.",
)
