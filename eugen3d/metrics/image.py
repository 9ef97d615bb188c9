"""Image metrics: PSNR and SSIM, as nerfstudio's own models compute them."""

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


def image_metrics(image: Tensor, target: Tensor) -> dict[str, float]:
    """PSNR in dB and SSIM of one image, both (height, width, 3) in [0, 1].

    SSIM is torchmetrics' with its Gaussian window of 11 pixels, over a data range of 1.
    """
    prediction, reference = (torch.moveaxis(x, -1, 0)[None] for x in (image, target))
    ssim = structural_similarity_index_measure(prediction, reference, data_range=1.0)
    assert isinstance(ssim, Tensor)
    return {"psnr": float(peak_signal_noise_ratio(prediction, reference, data_range=1.0)), "ssim": float(ssim)}
