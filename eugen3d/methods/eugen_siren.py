"""`ns-train eugen-siren`: the paper's SIREN, all layers but the first EUGen with m = 64, k = 1, Φ = sine."""

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from eugen3d.datasets.signal_datamanager import SignalDataManagerConfig
from eugen3d.models.optimizers import FieldOptimizerConfig
from eugen3d.models.siren import EUGenSirenModelConfig
from eugen3d.models.siren_pipeline import SirenPipelineConfig, SirenTrainerConfig

eugen_siren = MethodSpecification(
    config=SirenTrainerConfig(
        method_name="eugen-siren",
        max_num_iterations=1000,
        steps_per_save=500,
        steps_per_eval_batch=0,
        steps_per_eval_image=0,
        steps_per_eval_all_images=0,
        pipeline=SirenPipelineConfig(datamanager=SignalDataManagerConfig(), model=EUGenSirenModelConfig()),
        optimizers={
            # three times the rate that SIREN was published with, 1e-4 times ω₀ = 30, since it falls along a cosine
            "fields": {"optimizer": FieldOptimizerConfig(kind="adam", lr=1e-2, betas=(0.9, 0.999)), "scheduler": None},
            "head": {"optimizer": FieldOptimizerConfig(kind="adam", lr=3e-4, betas=(0.9, 0.999)), "scheduler": None},
        },
        viewer=ViewerConfig(quit_on_train_completion=True),
        vis="tensorboard",
    ),
    description="SIREN with EUGen layers (EUGens, 2025): fits an image, a sound, a video or a shape.",
)
