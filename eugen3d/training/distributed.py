"""Several processes at one task, as torchrun starts them: sums over all, values of the first, and who speaks.

Every function is a plain one for a process on its own: sums are what they were, and the only process is the main one.
Collectives have to be called by all processes in the same order. Torch alone.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


class ProcessLostError(RuntimeError):
    """Another process ended before its part was done."""


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Join the processes that torchrun started together: over gloo on a CPU, over nccl on NVIDIA GPUs.

    The standard output of all but the first goes nowhere.

    Args:
        device: "cpu" or "cuda", of which every process of a machine takes the one of its number, or "cuda:0".

    Returns:
        The device of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    with ExitStack() as stack:
        if not is_main():
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        yield device
    dist.destroy_process_group()  # not after an error: the others may never come to it


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, bit for bit the same in each of them; a new tensor where there are several."""
    if world_size() == 1:
        return tensor
    total = _moved(tensor).clone(memory_format=torch.contiguous_format)
    with _collective():
        dist.all_reduce(total)
    return total.to(tensor.device)


def all_gather_stack(tensor: Tensor) -> Tensor:
    """The tensors of all processes, of one shape, along a new first axis."""
    if world_size() == 1:
        return tensor[None]
    own = _moved(tensor)
    parts = [torch.empty_like(own) for _ in range(world_size())]
    with _collective():
        dist.all_gather(parts, own)
    return torch.stack(parts).to(tensor.device)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Put the mean over all processes in the place of every gradient; a parameter without one counts as zero."""
    if world_size() == 1:
        return
    parameters = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = all_reduce_sum(torch.cat([gradient.flatten() for gradient in gradients])) / world_size()
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, mean in zip(parameters, flat.split(sizes), strict=True):
        parameter.grad = mean.view_as(parameter).clone()


def broadcast_module(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    broadcast_tensors(module.state_dict().values())


@torch.no_grad()
def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's values of some tensors, in place."""
    if world_size() == 1:
        return
    for tensor in tensors:
        value = _moved(tensor).contiguous()
        with _collective():
            dist.broadcast(value, 0)
        tensor.copy_(value)


def from_main(function: Callable[[], T]) -> T:
    """What a function gives in the main process, which alone calls it; what it raises there is raised in each."""
    if world_size() == 1:
        return function()
    message: list[Any] = [None, None]
    if is_main():
        try:
            message[0] = function()
        except Exception as error:
            message[1] = error
    with _collective():
        dist.broadcast_object_list(message, 0)
    if message[1] is not None:
        raise message[1]
    return message[0]


def has_the_word() -> bool:
    """Whether it falls to this process to say why all of them end: the first that asks."""
    if not dist.is_initialized():
        return is_main()
    try:
        return dist.distributed_c10d._get_default_store().add("eugen3d/last_word", 1) == 1
    except RuntimeError:  # the process that kept the store is gone
        return True


@contextmanager
def _collective() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(f"another process ended before its part was done ({error})") from error


def _moved(tensor: Tensor) -> Tensor:
    """The tensor where the processes can exchange it: nccl does so on GPUs alone."""
    tensor = tensor.detach()
    return tensor.cuda() if dist.get_backend() == "nccl" else tensor.cpu()
