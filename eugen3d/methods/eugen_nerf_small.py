"""`ns-train eugen-nerf-small`: the same idea in a size that a CPU trains in minutes."""

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from eugen3d.datasets import ForegroundPixelSamplerConfig, SceneDataManagerConfig
from eugen3d.layers import EUGenConfig, LayerConfig
from eugen3d.models.nerf import EUGenNerfModelConfig
from eugen3d.models.optimizers import FieldOptimizerConfig
from eugen3d.models.schedules import ExponentialDecayConfig

eugen_nerf_small = MethodSpecification(
    config=TrainerConfig(
        method_name="eugen-nerf-small",
        max_num_iterations=1000,
        steps_per_save=250,
        steps_per_eval_batch=100,
        steps_per_eval_image=100_000,
        steps_per_eval_all_images=100_000,
        pipeline=VanillaPipelineConfig(
            datamanager=SceneDataManagerConfig(
                train_num_rays_per_batch=512,
                eval_num_rays_per_batch=512,
                pixel_sampler=ForegroundPixelSamplerConfig(foreground_weight=3.0),
            ),
            model=EUGenNerfModelConfig(
                layer=LayerConfig("eugen", EUGenConfig(num_features=64, use_norm=False)),
                num_layers=4,
                layer_width=128,
                view_width=64,
                num_coarse_samples=32,
                num_importance_samples=32,
            ),
        ),
        optimizers={
            "fields": {
                "optimizer": FieldOptimizerConfig(),
                "scheduler": ExponentialDecayConfig(lr_final=3e-4, max_steps=1000, warmup_steps=50),
            },
        },
        viewer=ViewerConfig(num_rays_per_chunk=4096, quit_on_train_completion=True),
        vis="tensorboard",
    ),
    description="eugen-nerf with a 4x128 field and 32 + 32 samples a ray, for a CPU.",
)
