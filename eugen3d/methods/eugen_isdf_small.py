"""`ns-train eugen-isdf-small`: the same idea in a size that a CPU trains in minutes."""

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from eugen3d.datasets.depth_datamanager import DepthDataManagerConfig
from eugen3d.layers import EUGenConfig, LayerConfig
from eugen3d.mapping import KeyframeConfig, RaySamplingConfig, SdfMapperConfig
from eugen3d.models.isdf import EUGenIsdfModelConfig
from eugen3d.models.isdf_pipeline import SdfPipelineConfig, SdfTrainerConfig
from eugen3d.models.optimizers import FieldOptimizerConfig

eugen_isdf_small = MethodSpecification(
    config=SdfTrainerConfig(
        method_name="eugen-isdf-small",
        max_num_iterations=100_000,
        steps_per_save=200,
        steps_per_eval_batch=0,
        steps_per_eval_image=0,
        steps_per_eval_all_images=0,
        pipeline=SdfPipelineConfig(
            datamanager=DepthDataManagerConfig(max_batch_frames=32),
            model=EUGenIsdfModelConfig(
                layer=LayerConfig("eugen", EUGenConfig(num_features=48, phi="softplus-100", use_norm=False)),
                replaced_layers=(1, 2),
                num_layers=4,
                layer_width=96,
                num_frequencies=4,
                input_scale=0.4,
            ),
            mapper=SdfMapperConfig(
                rays=RaySamplingConfig(num_rays=40, num_surface_samples=4, num_stratified_samples=8),
                keyframes=KeyframeConfig(num_test_rays=100),
                num_first_steps=100,
                num_frame_steps=5,
                num_keyframe_steps=25,
            ),
            num_final_steps=200,
        ),
        optimizers={
            "fields": {
                "optimizer": FieldOptimizerConfig(kind="adam", lr=2.6e-3, betas=(0.9, 0.999), weight_decay=0.012),
                "scheduler": None,
            },
        },
        viewer=ViewerConfig(quit_on_train_completion=True, max_num_display_images=0),
        vis="tensorboard",
    ),
    description="eugen-isdf with a 4x96 field and 13 samples on each of 40 rays a frame, for a CPU.",
)
