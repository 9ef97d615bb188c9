"""Triton's backend: refused in one line where it cannot be had, compiled for GPUs and interpreted where it can.

The kernel itself is tested by `triton_cases.py`: in a process of its own, since Triton takes its interpreter once.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from eugen3d.runtime import AutoModule, TritonChain, TritonUnavailable, build
from eugen3d.runtime.triton_chain import load_kernel

PROJECT = Path(__file__).parents[2]
CASES = Path(__file__).with_name("triton_cases.py")

needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")
has_gpu = torch.cuda.is_available() and torch.version.cuda is not None
needs_no_gpu = pytest.mark.skipif(has_gpu, reason="there is a CUDA device")

COMPILE = """
import sys
from unittest import mock
import torch, triton
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from eugen3d.layers import EUGenFeatures
from eugen3d.runtime import TritonChain, triton_chain, triton_kernel

features = EUGenFeatures(20, 24, order=2, use_norm=True), EUGenFeatures(68, 8, phi="sine", use_norm=True, norm_rank=3)
chain = nn.Sequential(*features, nn.Linear(8, 130), nn.GELU(), nn.Linear(130, 3), nn.Softplus())
with mock.patch.multiple(triton_chain, load_kernel=lambda: triton_kernel, _require_gpu=lambda device: None):
    for dtype, pointer in ((torch.float32, "*fp32"), (torch.bfloat16, "*bf16"), (torch.float16, "*fp16")):
        constants = TritonChain(chain, dtype, concatenates=(1,)).constants()
        types = {"x": "*fp32", "y": "*fp32", "weights": pointer, "vectors": "*fp32", "num_rows": "i32"}
        types |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(triton_kernel.chain_kernel, types, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_warps": 4})
        assert compiled.metadata.shared <= 99 * 1024 and len(compiled.asm["cubin"]) > 1000
        print("compiled", dtype, compiled.metadata.shared)
"""


def run(*command: str, **environment: str) -> str:
    """The output of a Python process; fails with all that it said."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    finished = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=PROJECT, env={**kept, **environment}
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@needs_triton
@pytest.mark.slow
def test_the_interpreted_kernel_agrees_with_eager() -> None:
    said = run("-m", "pytest", str(CASES), "-W", "ignore", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    assert "passed" in said and "skipped" not in said, said


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_without_a_gpu(capability: int, tmp_path: Path) -> None:
    """For the A100 and the H100, to machine code: what the interpreter allows, the compiler may not."""
    said = run("-c", COMPILE, str(capability), TRITON_CACHE_DIR=str(tmp_path))
    assert said.count("compiled") == 3


@pytest.mark.cuda
@pytest.mark.skipif(not has_gpu, reason="no CUDA device was found")
@needs_triton
def test_the_kernel_agrees_with_eager_on_a_gpu() -> None:
    assert "passed" in run("-m", "pytest", str(CASES))


@needs_triton
@needs_no_gpu
@pytest.mark.parametrize("module", [nn.Linear(3, 3), nn.LayerNorm(3)])
def test_no_gpu_is_one_clear_line(module: nn.Module) -> None:
    with pytest.raises(TritonUnavailable, match=r"no CUDA device was found \(torch .*\), expected one") as raised:
        build(module, "triton")
    assert "\n" not in str(raised.value)


def test_no_triton_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "eugen3d.runtime.triton_kernel", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(TritonUnavailable, match=r"Triton cannot be imported .* expected it installed, on Linux"):
        TritonChain(nn.Sequential(nn.Linear(3, 3)))


@needs_no_gpu
def test_auto_leaves_it_out_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module = build(nn.Linear(3, 3))
    assert isinstance(module, AutoModule)
    assert not module._is_available("triton", (torch.zeros(2, 3),))
    assert module.unavailable["triton"]


@needs_triton
@needs_no_gpu
def test_importing_the_kernel_needs_no_gpu() -> None:
    with pytest.raises(TritonUnavailable, match="no CUDA device"):
        load_kernel()
    assert "eugen3d.runtime.triton_kernel" in sys.modules
