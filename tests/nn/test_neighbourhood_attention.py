"""Dilated neighbourhood attention against brute force, full self-attention and the properties that pin it."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from inpaint.nn.neighbourhood_attention import (
    NeighbourhoodAttention,
    axis_windows,
    dense_attention,
    gather_attention,
    neighbourhood_attention,
)

BACKENDS = [gather_attention, dense_attention]


def inputs(height, width, *, batch=1, heads=2, channels=3, kernel=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=dtype)  # noqa: E731
    q, k, v = (draw(batch, heads, height, width, channels) for _ in range(3))
    return q, k, v, draw(heads, 2 * kernel - 1, 2 * kernel - 1)


def window_by_search(i, length, kernel, dilation):
    """The `kernel` positions of i's residue class whose middle is nearest to i, found by trying every run."""
    mates = [p for p in range(length) if p % dilation == i % dilation]
    runs = [mates[s : s + kernel] for s in range(len(mates) - kernel + 1)]
    return min(runs, key=lambda run: abs(run[kernel // 2] - i))


def brute_force(query, key, value, bias, kernel, dilation):
    """One query at a time, from the text of the paper."""
    batch, heads, height, width, channels = query.shape
    out = torch.zeros_like(value)
    for b, h, y, x in itertools.product(range(batch), range(heads), range(height), range(width)):
        rows, columns = window_by_search(y, height, kernel, dilation), window_by_search(x, width, kernel, dilation)
        scores = torch.stack(
            [
                query[b, h, y, x] @ key[b, h, r, c] / channels**0.5
                + bias[h, (r - y) // dilation + kernel - 1, (c - x) // dilation + kernel - 1]
                for r in rows
                for c in columns
            ]
        )
        mates = torch.stack([value[b, h, r, c] for r in rows for c in columns])
        out[b, h, y, x] = scores.softmax(0) @ mates
    return out


@pytest.mark.parametrize(
    ("height", "width", "kernel", "dilation"), [(6, 8, 3, 1), (6, 8, 3, 2), (7, 9, 3, 2), (10, 11, 5, 2)]
)
def test_gather_is_brute_force_on_any_size(height, width, kernel, dilation):
    q, k, v, bias = inputs(height, width, kernel=kernel)

    torch.testing.assert_close(
        gather_attention(q, k, v, bias, kernel, dilation), brute_force(q, k, v, bias, kernel, dilation)
    )


@pytest.mark.parametrize(
    ("height", "width", "kernel", "dilation"), [(6, 8, 3, 1), (6, 8, 3, 2), (12, 9, 3, 3), (10, 14, 5, 2)]
)
def test_dense_equals_gather_and_so_do_all_gradients(height, width, kernel, dilation):
    tensors = inputs(height, width, batch=2, kernel=kernel)
    results = []
    for backend in BACKENDS:
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = backend(*leaves, kernel, dilation)
        out.square().sum().backward()
        results.append((out, [leaf.grad for leaf in leaves]))

    (gathered, gather_grads), (dense, dense_grads) = results
    torch.testing.assert_close(dense, gathered, atol=1e-5, rtol=1e-5)
    for a, b in zip(dense_grads, gather_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_window_as_large_as_the_map_is_full_self_attention(backend):
    q, k, v, bias = inputs(5, 5, kernel=5)
    full = F.scaled_dot_product_attention(*(t.flatten(2, 3) for t in (q, k, v))).view_as(v)
    torch.testing.assert_close(backend(q, k, v, None, 5, 1), full)

    place = torch.arange(5)
    relative = place[None, :] - place[:, None] + 4  # key minus query, from 0
    table = bias[:, relative[:, None, :, None], relative[None, :, None, :]].reshape(-1, 25, 25)
    full = F.scaled_dot_product_attention(*(t.flatten(2, 3) for t in (q, k, v)), attn_mask=table[None]).view_as(v)
    torch.testing.assert_close(backend(q, k, v, bias, 5, 1), full)


@pytest.mark.parametrize("backend", BACKENDS)
def test_map_of_two_kernels_at_dilation_two_is_four_attentions_on_the_sub_grids(backend):
    q, k, v, _ = inputs(6, 6)
    expected = torch.zeros_like(v)
    for y, x in itertools.product(range(2), repeat=2):
        grid = [t[:, :, y::2, x::2].flatten(2, 3) for t in (q, k, v)]
        expected[:, :, y::2, x::2] = F.scaled_dot_product_attention(*grid).unflatten(2, (3, 3))

    torch.testing.assert_close(backend(q, k, v, None, 3, 2), expected)


def test_windows_are_the_published_tables():
    positions, rows = axis_windows(9, 3, 1)
    assert [positions[i].tolist() for i in (0, 1, 7, 8)] == [[0, 1, 2], [0, 1, 2], [6, 7, 8], [6, 7, 8]]

    positions, rows = axis_windows(9, 3, 2)
    expected = [[0, 2, 4], [0, 2, 4], [1, 3, 5], [4, 6, 8], [4, 6, 8], [3, 5, 7], [3, 5, 7]]
    assert positions[[0, 2, 1, 6, 8, 5, 7]].tolist() == expected
    assert [rows[i].tolist() for i in (0, 1, 2, 7, 8)] == [[2, 3, 4], [2, 3, 4], [1, 2, 3], [0, 1, 2], [0, 1, 2]]

    positions, _ = axis_windows(10, 3, 3)
    expected = [[0, 3, 6], [0, 3, 6], [3, 6, 9], [3, 6, 9], [1, 4, 7], [1, 4, 7], [1, 4, 7]]
    assert positions[[0, 3, 6, 9, 1, 4, 7]].tolist() == expected


@pytest.mark.parametrize(("kernel", "dilation"), list(itertools.product((3, 5, 7, 9, 13), (1, 2, 3, 5, 9))))
def test_every_window_has_the_nearest_keys_of_the_querys_class_and_the_query_itself(kernel, dilation):
    for length in (kernel * dilation, kernel * dilation + 1, kernel * dilation + dilation + 2):
        positions, rows = axis_windows(length, kernel, dilation)
        for i in range(length):
            assert positions[i].tolist() == window_by_search(i, length, kernel, dilation)
            assert i in positions[i]
            assert ((positions[i] - i) // dilation + kernel - 1).tolist() == rows[i].tolist()


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_flipping_an_axis_of_the_inputs_and_the_table_flips_the_output(axis, size):
    q, k, v, bias = inputs(*size)
    flipped = neighbourhood_attention(
        *(t.flip(axis) for t in (q, k, v)), bias.flip(axis - 1), kernel=3, dilation=2
    )

    torch.testing.assert_close(flipped.flip(axis), neighbourhood_attention(q, k, v, bias, kernel=3, dilation=2))


def test_transposing_inputs_and_table_transposes_the_output():
    q, k, v, bias = inputs(9, 7)
    turned = gather_attention(*(t.transpose(2, 3) for t in (q, k, v)), bias.transpose(1, 2), 3, 2)

    torch.testing.assert_close(turned.transpose(2, 3), gather_attention(q, k, v, bias, 3, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_values_come_back_and_zero_queries_take_the_plain_mean(backend):
    q, k, v, bias = inputs(8, 8)
    torch.testing.assert_close(backend(q, k, torch.full_like(v, 2.5), bias, 3, 2), torch.full_like(v, 2.5))

    mean = backend(torch.zeros_like(q), k, v, None, 3, 2)
    torch.testing.assert_close(mean[0, 0, 0, 0], v[0, 0, 0:5:2, 0:5:2].mean((0, 1)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_inside_a_covered_grid_does_not_matter_for_keys_and_carries_over_for_queries(backend):
    q, k, v, _ = inputs(6, 6)
    before = backend(q, k, v, None, 3, 2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))

    def shuffled(t):
        t = t.clone()
        t[:, :, 0::2, 0::2] = t[:, :, 0::2, 0::2].flatten(2, 3)[:, :, order].unflatten(2, (3, 3))
        return t

    torch.testing.assert_close(backend(q, shuffled(k), shuffled(v), None, 3, 2), before)
    torch.testing.assert_close(backend(shuffled(q), k, v, None, 3, 2), shuffled(before))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_an_output_reaches_exactly_its_window(backend):
    q, k, v, bias = inputs(8, 10)
    v.requires_grad_()
    backend(q, k, v, bias, 3, 2)[0, 1, 1, 8].sum().backward()

    reached = v.grad.abs().sum((0, 4)).nonzero().tolist()
    assert reached == [[1, r, c] for r in (1, 3, 5) for c in (4, 6, 8)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_residue_classes_batches_and_heads_do_not_touch_each_other(backend):
    q, k, v, bias = inputs(8, 8, batch=2)
    before = backend(q, k, v, bias, 3, 2)
    v2, k2 = v.clone(), k.clone()
    v2[1, 0, 0::2, 1::2] += 1
    k2[1, 0, 0::2, 1::2] -= 1
    changed = (backend(q, k2, v2, bias, 3, 2) != before).any(-1)

    expected = torch.zeros_like(changed)
    expected[1, 0, 0::2, 1::2] = True
    assert torch.equal(changed, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_are_right_in_float64(backend):
    tensors = [t.requires_grad_() for t in inputs(5, 5, heads=1, channels=2, dtype=torch.float64)]

    assert torch.autograd.gradcheck(lambda *t: backend(*t, 3, 1), tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_window_larger_than_the_map_is_refused_by_name(backend):
    q, k, v, bias = inputs(8, 6)
    with pytest.raises(ValueError, match=r"kernel 3 × dilation 3 = 9 does not fit a 8×6 map"):
        backend(q, k, v, bias, 3, 3)
    with pytest.raises(ValueError, match="odd kernel"):
        backend(q, k, v, bias, 2, 1)


def test_unequal_grids_are_refused_by_dense_and_taken_by_gather():
    q, k, v, bias = inputs(9, 9)
    with pytest.raises(ValueError, match="use gather_attention"):
        dense_attention(q, k, v, bias, 3, 2)

    torch.testing.assert_close(
        neighbourhood_attention(q, k, v, bias, kernel=3, dilation=2), gather_attention(q, k, v, bias, 3, 2)
    )


def test_unit_has_the_counted_parameters():
    unit = NeighbourhoodAttention(256, heads=8, kernel=7, dilation=2)

    assert sum(p.numel() for p in unit.parameters()) == 265_032  # spec, verified
    assert sum(p.numel() for p in unit.norm.parameters()) == 512
    assert sum(p.numel() for p in unit.qkv.parameters()) == 197_376
    assert sum(p.numel() for p in unit.projection.parameters()) == 65_792
    assert unit.bias.numel() == 1_352


def test_unit_keeps_the_shape_and_runs_in_bfloat16():
    torch.manual_seed(0)
    unit = NeighbourhoodAttention(16, heads=2, kernel=3, dilation=2, std=0.5)
    features = torch.randn(2, 16, 8, 6)
    exact = unit(features)
    with torch.autocast("cpu", torch.bfloat16):
        rough = unit(features)

    assert exact.shape == features.shape
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match="10 channels cannot be split over 4 heads"):
        NeighbourhoodAttention(10, heads=4, kernel=3, dilation=1)


@pytest.mark.parametrize("dilation", [1, 2])
def test_windows_first_asked_for_by_an_evaluation_serve_training_afterwards(dilation):
    unit = NeighbourhoodAttention(4, heads=1, kernel=3, dilation=dilation)
    features = torch.rand(1, 4, 10, 10, requires_grad=True)

    with torch.inference_mode():
        seen = unit(features)
    trained = unit(features)
    trained.sum().backward()

    torch.testing.assert_close(seen.clone(), trained)
    assert features.grad.abs().sum() > 0
