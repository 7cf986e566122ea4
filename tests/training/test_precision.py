"""The number formats of a step: set inside it, and the process's own again outside."""

from __future__ import annotations

import pytest
import torch

from inpaint.config.run import TrainingConfig
from inpaint.training.precision import autocast, policy

CUDA = torch.device("cuda")  # the settings are the process's own and need no such device


def settings():
    conv = torch.backends.cudnn.conv
    return torch.backends.cuda.matmul.fp32_precision, conv.fp32_precision, torch.backends.cudnn.benchmark


@pytest.mark.parametrize(("tf32", "kind"), [(True, "tf32"), (False, "ieee")])
def test_tf32_is_what_the_config_says_in_convolutions_and_products(tf32, kind):
    before = settings()
    with policy(TrainingConfig(tf32=tf32), CUDA):
        assert settings() == (kind, kind, True)
    assert settings() == before


def test_deterministic_kernels_are_asked_for_inside_only():
    with policy(TrainingConfig(deterministic=True), CUDA):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark  # which would choose kernels by their time
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_products_have_the_precision_of_the_config(precision, dtype):
    one = torch.ones(2, 2)
    with autocast(TrainingConfig(precision=precision), one.device):
        assert (one @ one).dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tf32_rounds_factors_to_ten_bits_and_its_absence_does_not():
    one, other = torch.full((1024, 1024), 1 + 2**-12, device="cuda"), torch.eye(1024, device="cuda")
    with policy(TrainingConfig(tf32=False), CUDA):
        assert (one @ other)[0, 0].item() == 1 + 2**-12
    with policy(TrainingConfig(tf32=True), CUDA):
        assert (one @ other)[0, 0].item() == 1
