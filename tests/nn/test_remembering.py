"""What a frozen network gave for an image is kept by the image's content, within a limit."""

import copy

import torch
from torch import nn

from inpaint.nn.remembering import Memory, RememberingFeatures


class Counted(nn.Module):
    """Doubles an image, and counts how often."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, image, layers):
        self.calls += 1
        return dict.fromkeys(layers, 2 * image)


def images(count):
    return [torch.full((1, 3, 2, 2), float(number)) for number in range(count)]


def test_an_equal_image_is_looked_at_once():
    network = Counted()
    remembering = RememberingFeatures(network, calls=2)
    with torch.no_grad():
        first = remembering(torch.ones(1, 3, 2, 2), ["relu1_1"])
        again = remembering(torch.ones(1, 3, 2, 2), ["relu1_1"])
        remembering(torch.zeros(1, 3, 2, 2), ["relu1_1"])
    assert network.calls == 2
    assert again["relu1_1"] is first["relu1_1"]
    assert torch.equal(first["relu1_1"], torch.full((1, 3, 2, 2), 2.0))


def test_other_layers_and_a_transposed_image_are_other_questions():
    network = Counted()
    remembering = RememberingFeatures(network, calls=9)
    with torch.no_grad():
        remembering(torch.ones(1, 3, 2, 4), ["relu1_1"])
        remembering(torch.ones(1, 3, 2, 4), ["relu1_1", "relu2_1"])
        remembering(torch.ones(1, 3, 4, 2), ["relu1_1"])
    assert network.calls == 3


def test_where_gradients_are_asked_for_nothing_is_remembered():
    network = Counted()
    remembering = RememberingFeatures(network, calls=2)
    image = torch.ones(1, 3, 2, 2, requires_grad=True)
    for _ in range(2):
        remembering(image, ["relu1_1"])["relu1_1"].sum().backward()
    assert network.calls == 2
    assert torch.equal(image.grad, torch.full((1, 3, 2, 2), 4.0))


def test_where_all_calls_would_not_fit_nothing_more_is_kept():
    network = Counted()
    remembering = RememberingFeatures(network, calls=3, limit_bytes=100)  # 48 bytes each
    with torch.no_grad():
        for image in [*images(3), *images(3)]:
            remembering(image, ["relu1_1"])
    assert network.calls == 6
    assert len(remembering.memory) == 1


def test_a_full_memory_keeps_what_it_has():
    memory, computed = Memory(limit_bytes=100), []
    for image in [*images(3), *images(3)]:
        memory.get(image, lambda image=image: computed.append(image[0, 0, 0, 0].item()) or 2 * image)
    assert computed == [0, 1, 2, 2]
    assert memory.bytes == 96


def test_a_copied_memory_is_empty():
    memory = Memory()
    memory.get(torch.ones(1), lambda: torch.ones(1))
    assert len(copy.deepcopy(memory)) == 0
