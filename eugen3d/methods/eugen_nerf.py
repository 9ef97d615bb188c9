"""`ns-train eugen-nerf`: the paper's NeRF, three of its eight hidden layers EUGen with m = 256, k = 1, ReLU."""

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from eugen3d.datasets import SceneDataManagerConfig
from eugen3d.layers import EUGenConfig, LayerConfig
from eugen3d.models.nerf import EUGenNerfModelConfig
from eugen3d.models.optimizers import FieldOptimizerConfig
from eugen3d.models.schedules import ExponentialDecayConfig

eugen_nerf = MethodSpecification(
    config=TrainerConfig(
        method_name="eugen-nerf",
        max_num_iterations=200_000,
        steps_per_save=5000,
        steps_per_eval_batch=1000,
        steps_per_eval_image=5000,
        steps_per_eval_all_images=200_000,
        pipeline=VanillaPipelineConfig(
            datamanager=SceneDataManagerConfig(train_num_rays_per_batch=1024, eval_num_rays_per_batch=1024),
            model=EUGenNerfModelConfig(layer=LayerConfig("eugen", EUGenConfig(num_features=256))),
        ),
        optimizers={
            "fields": {
                "optimizer": FieldOptimizerConfig(),
                "scheduler": ExponentialDecayConfig(lr_final=1e-4, max_steps=200_000),
            },
        },
        viewer=ViewerConfig(num_rays_per_chunk=4096),
        vis="viewer",
    ),
    description="NeRF with EUGen layers (EUGens, 2025); --pipeline.model.layer.kind linear is its dense baseline.",
)
