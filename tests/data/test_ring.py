"""Memory of batches: zeros of the shape asked for, where decoders write fast."""

import pytest
import torch

from inpaint.data.ring import make_slots


@pytest.mark.parametrize("as_planes", [False, True])
def test_a_slots_rows_lie_beside_the_multiples_of_32_that_decoders_write_slowly(as_planes):
    slots = make_slots(3, 2, 64, as_planes=as_planes, with_masks=True, device=torch.device("cpu"))
    for slot in slots:
        images = slot.planes if as_planes else slot.pixels
        assert images.shape == ((2, 64 * 64 * 3 // 2) if as_planes else (2, 64, 64, 3))
        assert slot.masks.shape == (2, 64, 64)
        assert not slot.masks.any()
        assert not images.any()
        assert images.is_contiguous()
        assert [row.data_ptr() % 32 for row in images] == [16, 16]
        images.fill_(1)
    assert not any(slot.masks.any() for slot in slots)  # no two share memory


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_for_a_cuda_device_stays_pinned():
    (slot,) = make_slots(1, 2, 64, as_planes=False, with_masks=True, device=torch.device("cuda"))
    assert slot.pixels.is_pinned()
    assert slot.masks.is_pinned()
