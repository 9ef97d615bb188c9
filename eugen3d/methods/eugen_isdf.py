"""`ns-train eugen-isdf`: the paper's iSDF, two of its six hidden layers EUGen with m = 128, k = 1."""

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from eugen3d.datasets.depth_datamanager import DepthDataManagerConfig
from eugen3d.models.isdf import EUGenIsdfModelConfig
from eugen3d.models.isdf_pipeline import SdfPipelineConfig, SdfTrainerConfig
from eugen3d.models.optimizers import FieldOptimizerConfig

eugen_isdf = MethodSpecification(
    config=SdfTrainerConfig(
        method_name="eugen-isdf",
        max_num_iterations=1_000_000,
        steps_per_save=200,
        steps_per_eval_batch=0,
        steps_per_eval_image=0,
        steps_per_eval_all_images=0,
        pipeline=SdfPipelineConfig(datamanager=DepthDataManagerConfig(), model=EUGenIsdfModelConfig()),
        optimizers={
            "fields": {
                "optimizer": FieldOptimizerConfig(kind="adam", lr=1.3e-3, betas=(0.9, 0.999), weight_decay=0.012),
                "scheduler": None,
            },
        },
        viewer=ViewerConfig(quit_on_train_completion=True, max_num_display_images=0),
        vis="tensorboard",
    ),
    description="iSDF with EUGen layers from a depth stream (EUGens, 2025); it ends with the stream.",
)
