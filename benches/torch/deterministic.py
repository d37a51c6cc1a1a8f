"""Makes a process compute the same bits again.

What PyTorch can do by itself is asked for. Where one of its operations has no deterministic version, here is one.
"""

import warnings

import torch

#: How much is asked for: nothing; what leaves programs as they are; attention in plain operations and new memory filled
#: as well, in case the operations of a program read what they have not written.
FREE, USUAL, STRICT = 0, 1, 2


def ask_for(level):
    """Asks for determinism in this process. `CUBLAS_WORKSPACE_CONFIG` has to be set before CUDA starts."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = level > FREE
    if level == FREE:
        return
    # Not `warn_only`: with it attention keeps its faster backward passes, which are not deterministic.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = level >= STRICT
    torch.backends.cuda.enable_cudnn_sdp(False)
    matmul = torch.backends.cuda.matmul
    for name in ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"):
        setattr(matmul, name, False)
    if level >= STRICT:
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)


def settle_for_less():
    """Goes on without determinism in operations that have no deterministic version, which say so once."""
    warnings.filterwarnings("once", message=".*deterministic.*")
    torch.use_deterministic_algorithms(True, warn_only=True)


def lacks_version(error):
    """The operation of which an error says that it has no deterministic version, or `None`."""
    text = str(error)
    return text.split(" does not have a deterministic", 1)[0] if "does not have a deterministic" in text else None


def _weights(start, size, bins, samples, length):
    """How much of each of `length` places on a line is in each bin of each region: [regions, bins, length]."""
    steps = (torch.arange(bins * samples, device=start.device, dtype=start.dtype) + 0.5) / samples
    at = start[:, None] + steps[None, :] * (size / bins)[:, None]
    inside = (at >= -1.0) & (at <= length)
    at = at.clamp(0.0, length - 1.0)
    places = torch.arange(length, device=start.device, dtype=start.dtype)
    near = (1.0 - (at[:, :, None] - places).abs()).clamp(min=0.0) * inside[:, :, None]
    return near.reshape(len(start), bins, samples, length).mean(2)


class _RoiAlign(torch.autograd.Function):
    """torchvision's alignment of regions; its gradient as products of matrices instead of additions in any order.

    Interpolation is along one axis and then along the other, so that what a region takes from its map is a matrix times
    the map times a matrix, and the gradient is the same the other way.
    """

    @staticmethod
    def forward(ctx, features, regions, height, width, scale, samples):
        ctx.save_for_backward(regions)
        ctx.shape, ctx.options = features.shape, (height, width, scale, samples)
        return torch.ops.torchvision.roi_align(features, regions, scale, height, width, samples, False)

    @staticmethod
    def backward(ctx, gradient):
        (regions,) = ctx.saved_tensors
        (images, channels, rows, columns), (height, width, scale, samples) = ctx.shape, ctx.options
        left, top, right, bottom = (regions[:, 1:] * scale).unbind(1)
        down = _weights(top, (bottom - top).clamp(min=1.0), height, samples, rows)
        across = _weights(left, (right - left).clamp(min=1.0), width, samples, columns)
        result = gradient.new_zeros(ctx.shape)
        for image in range(images):
            mine = torch.where(regions[:, 0] == image)[0]
            if len(mine) == 0:
                continue
            wide = gradient[mine] @ across[mine][:, None]
            wide = wide.transpose(1, 2).reshape(len(mine) * height, channels * columns)
            tall = down[mine].reshape(len(mine) * height, rows)
            result[image] = (tall.t() @ wide).reshape(rows, channels, columns).transpose(0, 1)
        return result, None, None, None, None, None


def align_regions(features, regions, output_size, spatial_scale=1.0, sampling_ratio=-1, aligned=False):
    """`torchvision.ops.roi_align`, deterministic where there is a gradient and a fixed number of samples."""
    from torchvision.ops._utils import convert_boxes_to_roi_format

    if not isinstance(regions, torch.Tensor):
        regions = convert_boxes_to_roi_format(regions)
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    if features.requires_grad and sampling_ratio > 0 and not aligned:
        return _RoiAlign.apply(features, regions, height, width, spatial_scale, sampling_ratio)
    return torch.ops.torchvision.roi_align(
        features, regions, spatial_scale, height, width, sampling_ratio, aligned
    )


def patch_torchvision():
    """Has torchvision's detection models align regions with :func:`align_regions`."""
    import torchvision.models.detection.roi_heads as heads
    import torchvision.ops.poolers as poolers

    heads.roi_align = poolers.roi_align = align_regions
