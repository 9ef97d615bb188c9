"""`ns-train eugen-zipnerf`: Zip-NeRF, its first view-dependent layer EUGen with m = 64."""

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from eugen3d.datasets import SceneDataManagerConfig
from eugen3d.models.optimizers import FieldOptimizerConfig
from eugen3d.models.schedules import ExponentialDecayConfig
from eugen3d.models.zipnerf import EUGenZipNerfModelConfig

eugen_zipnerf = MethodSpecification(
    config=TrainerConfig(
        method_name="eugen-zipnerf",
        max_num_iterations=25_000,
        steps_per_save=2500,
        steps_per_eval_batch=1000,
        steps_per_eval_image=5000,
        steps_per_eval_all_images=25_000,
        pipeline=VanillaPipelineConfig(
            datamanager=SceneDataManagerConfig(train_num_rays_per_batch=8192, eval_num_rays_per_batch=4096),
            model=EUGenZipNerfModelConfig(eval_num_rays_per_chunk=4096),
        ),
        optimizers={
            group: {
                "optimizer": FieldOptimizerConfig(kind="adam", eps=1e-15),
                "scheduler": ExponentialDecayConfig(lr_final=1e-3, max_steps=25_000, warmup_steps=1000),
            }
            for group in ("fields", "grids")
        },
        viewer=ViewerConfig(num_rays_per_chunk=4096),
        vis="viewer",
    ),
    description="Zip-NeRF with an EUGen layer (EUGens, 2025); --pipeline.model.layer.kind linear is dense.",
)
