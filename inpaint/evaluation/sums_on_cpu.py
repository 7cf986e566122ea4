"""Sums over pixels in one pass over memory: a row is weighed and summed while it is in the processor's cache.

Each step as an operation of its own over whole images costs four to eight times as much. Every image is summed alone:
no digit depends on its batch.
"""

from __future__ import annotations

import numpy as np

from inpaint.compiled import compiled_sums


@compiled_sums
def weigh_channels(images, weights, out):
    """[B, 3, H, W] float32 to [B, H, W] float32, by three weights."""
    for image in range(images.shape[0]):
        for y in range(images.shape[2]):
            _weigh(images[image, 0, y], images[image, 1, y], images[image, 2, y], weights, out[image, y])


@compiled_sums
def _weigh(red, green, blue, weights, out):
    for j in range(out.size):
        out[j] = weights[0] * red[j] + weights[1] * green[j] + weights[2] * blue[j]


@compiled_sums
def sum_pixels(predicted, truth, mask, out):
    """The sums of `sums.Sums`, in its order.

    Args:
        predicted, truth: [B, C, H, W] float32.
        mask: [B, H, W] float32.
        out: [sums, B] float64.
    """
    out[:] = 0
    for image in range(predicted.shape[0]):
        for y in range(predicted.shape[2]):
            hole = mask[image, y]
            for channel in range(predicted.shape[1]):
                for place, value in enumerate(_errors(predicted[image, channel, y], truth[image, channel, y], hole)):
                    out[place, image] += value
            out[6, image] += _total(hole)


@compiled_sums
def _errors(row, true, hole):
    absolute = square = hole_absolute = hole_square = values = true_values = np.float32(0)
    for j in range(row.size):
        error = row[j] - true[j]
        absolute += abs(error)
        square += error * error
        hole_absolute += hole[j] * abs(error)
        hole_square += hole[j] * (error * error)
        values += row[j]
        true_values += true[j]
    return absolute, square, hole_absolute, hole_square, values, true_values


@compiled_sums
def _total(row):
    total = np.float32(0)
    for j in range(row.size):
        total += row[j]
    return total
