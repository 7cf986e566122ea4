"""The ISNet authors' checkpoints under our names.

| theirs | ours |
|---|---|
| `layer1.downsample` | `stem.skip` |
| `layer1.conv_block.1`, `.4` | `stem.first`, `stem.second` |
| `stage<n-1>.branches.0.<b>.conv_block.1`, `.4` | `phases.<n-1>.high_blocks.<b>.first`, `.second` |
| `stage<n-1>.branches.1.<b>.conv_block.1`, `.4` | `phases.<n-1>.low_blocks.<b>.first`, `.second` |
| `stage<n-1>.fuse_layers.0.1.<i>.0` | `phases.<n-1>.up.convs.<i>` |
| `stage<n-1>.fuse_layers.1.0.<i>.0` | `phases.<n-1>.down.<i>` |
| `stage<n-1>.fuse_layers.1.1.0` | `phases.<n-1>.low_down` |
| `stage<n-1>.fused_branches.0.0.0`, `.1.0.0` | `phases.<n-1>.high_aggregation`, `.low_aggregation` |
| `up_layer.<i>.0` | `fusion_up.convs.<i>` |
| `final_layer.0`, `.2` (Base: `final_layer`) | `head.0`, `head.1` (Base: `head.0`) |

Of a spectrally normalised layer, `weight_orig`, `weight_u` and `weight_v` become `parametrizations.weight.original`,
`.0._u` and `.0._v`. The same map serves ISNet with 1 to 4 blocks, Base and Base+FF; the discriminator's `conv<i>.0`
becomes `layers.<i-1>` (its `features.0` is a second name of `conv1.0`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from inpaint.errors import WeightsError

_LAYERS = [
    (r"layer1\.downsample", r"stem.skip"),
    (r"layer1\.conv_block\.1", r"stem.first"),
    (r"layer1\.conv_block\.4", r"stem.second"),
    (r"stage(\d)\.branches\.0\.(\d)\.conv_block\.1", r"phases.\1.high_blocks.\2.first"),
    (r"stage(\d)\.branches\.0\.(\d)\.conv_block\.4", r"phases.\1.high_blocks.\2.second"),
    (r"stage(\d)\.branches\.1\.(\d)\.conv_block\.1", r"phases.\1.low_blocks.\2.first"),
    (r"stage(\d)\.branches\.1\.(\d)\.conv_block\.4", r"phases.\1.low_blocks.\2.second"),
    (r"stage(\d)\.fuse_layers\.0\.1\.(\d)\.0", r"phases.\1.up.convs.\2"),
    (r"stage(\d)\.fuse_layers\.1\.0\.(\d)\.0", r"phases.\1.down.\2"),
    (r"stage(\d)\.fuse_layers\.1\.1\.0", r"phases.\1.low_down"),
    (r"stage(\d)\.fused_branches\.0\.0\.0", r"phases.\1.high_aggregation"),
    (r"stage(\d)\.fused_branches\.1\.0\.0", r"phases.\1.low_aggregation"),
    (r"up_layer\.(\d)\.0", r"fusion_up.convs.\1"),
    (r"final_layer\.0", r"head.0"),
    (r"final_layer\.2", r"head.1"),
    (r"final_layer", r"head.0"),
]
_PARTS = {
    "weight": "weight",
    "bias": "bias",
    "weight_orig": "parametrizations.weight.original",
    "weight_u": "parametrizations.weight.0._u",
    "weight_v": "parametrizations.weight.0._v",
}


def own_key(theirs: str) -> str:
    """Our name of a tensor in the authors' generator checkpoint.

    Raises:
        WeightsError: the key is none of theirs.
    """
    layer, _, part = theirs.removeprefix("module.").rpartition(".")
    for pattern, ours in _LAYERS:
        if part in _PARTS and re.fullmatch(pattern, layer):
            return f"{re.sub(pattern, ours, layer)}.{_PARTS[part]}"
    raise WeightsError(f"{theirs} is no tensor of the ISNet authors' generator; expected keys such as stage0.branches…")


def own_discriminator_key(theirs: str) -> str | None:
    """Our name of a tensor in the authors' discriminator checkpoint; None for the alias `features.0`.

    Raises:
        WeightsError: the key is none of theirs.
    """
    layer, _, part = theirs.removeprefix("module.").rpartition(".")
    if layer == "features.0":
        return None
    match = re.fullmatch(r"conv([1-5])\.0", layer)
    if not match or part not in _PARTS:
        raise WeightsError(f"{theirs} is no tensor of the ISNet authors' discriminator; expected conv1.0 to conv5.0")
    return f"layers.{int(match[1]) - 1}.{_PARTS[part]}"


def load_authors_generator(generator: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the `generator` state dict of an authors' checkpoint into `Generator` (designs isnet, base, base_ff).

    Raises:
        WeightsError: a tensor is missing, superfluous or of another shape (another number of blocks, say).
    """
    _load(generator, {own_key(key): tensor for key, tensor in state.items()})


def load_authors_discriminator(discriminator: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the `discriminator` state dict of an authors' checkpoint into `PatchDiscriminator`.

    Raises:
        WeightsError: a tensor is missing, superfluous or of another shape.
    """
    renamed = {own_discriminator_key(key): tensor for key, tensor in state.items()}
    _load(discriminator, {key: tensor for key, tensor in renamed.items() if key is not None})


def _load(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"the authors' weights do not fit this network: {error}") from error
