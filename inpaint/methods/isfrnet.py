"""ISFRNet: a pSp-StyleGAN prior draws a face, IFR restores who it is, SFR restores its structure.

Source: Wang and Shin, "ISFRNet: A Deep Three-stage Identity and Structure Feature Refinement Network for Facial Image
Inpainting", 2023. The mask is 1 in the hole, as here. Its networks work in [-1, 1]; `to_signed` and `from_signed` are
where that range meets the product's [0, 1].

The paper takes the prior as published and frozen. No inpainting weights of it were ever published, so the stage
`prior`, off by default, trains or fine-tunes one: encoder and decoder draw the whole face from its holed image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint import weights
from inpaint.config.methods import ISFRNetConfig, PSPConfig
from inpaint.config.optim import OptimizerConfig
from inpaint.errors import WeightsError
from inpaint.imaging import Batch, composite, from_signed, hole_ratio, to_signed
from inpaint.losses import adversarial, perceptual, reconstruction
from inpaint.losses.variation import total_variation
from inpaint.methods.base import Loss, Method, Stage, Terms, Update
from inpaint.nn.features import LAYERS, FeatureNetwork, paired_features
from inpaint.nn.output_shards import OutputShards
from inpaint.nn.patch_discriminator import PatchDiscriminator
from inpaint.nn.psp import Design, Encoder, design_of, face_pool, load_published
from inpaint.nn.reflection import reflection_pad
from inpaint.nn.spectral import Convolution
from inpaint.nn.stylegan2 import StyleGAN2, decoder_widths

SLOPE = 0.2
STD = 0.02  # of initial convolution weights, assumed
IFR_BLOCKS = 4
PRIOR = ("psp_encoder", "psp_decoder")


class IdentityRefiner(nn.Module):
    """IFR: [B, 4, 256, 256] → 64 (256²) → 128 → 256 (64²) → 4 residual blocks → 128 → 64 → [B, 3, 256, 256] in [-1, 1].

    5,480,515 parameters at width 64; it sees 89 pixels. Instance norm without affine, because the paper's batch is 1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        self.first = _conv(4, w, 7)
        self.down = nn.ModuleList(_conv(i, 2 * i, 3, stride=2, padding=1) for i in (w, 2 * w))
        self.blocks = nn.ModuleList(
            nn.ModuleList([_conv(4 * w, 4 * w, 3), _conv(4 * w, 4 * w, 3)]) for _ in range(IFR_BLOCKS)
        )
        self.up = nn.ModuleList([_up(4 * w, 2 * w, 3, output_padding=1), _up(2 * w, w, 3, output_padding=1)])
        self.last = _conv(w, 3, 7)

    def forward(self, seen: Tensor) -> Tensor:
        features = F.relu(F.instance_norm(self.first(reflection_pad(seen, 3))))
        for layer in self.down:
            features = F.relu(F.instance_norm(layer(features)))
        for first, second in self.blocks:
            branch = F.relu(F.instance_norm(first(reflection_pad(features, 1))))
            features = features + F.instance_norm(second(reflection_pad(branch, 1)))
        for layer in self.up:
            features = F.relu(F.instance_norm(layer(features)))
        return torch.tanh(self.last(reflection_pad(features, 3)))


class StructureEncoder(nn.Module):
    """[B, 4, 256, 256] → 64 128² → 128 64² → 256 32² → 512 16² → ... → 512 1². 19,536,832 parameters.

    Returns each level before its LeakyReLU, shallowest first.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _conv(i, o, 4, stride=2, padding=1) for i, o in zip([4, *channels[:-1]], channels, strict=True)
        )

    def forward(self, seen: Tensor) -> list[Tensor]:
        levels = [self.layers[0](seen)]
        for number, layer in enumerate(self.layers[1:], start=2):
            features = layer(F.leaky_relu(levels[-1], SLOPE))
            levels.append(features if number == len(self.layers) else F.instance_norm(features))
        return levels


class StructureRefiner(nn.Module):
    """SFR: two encoders, of the holed and of the identity-refined image, and one decoder over both.

    2 × [B, 4, 256, 256] and w [B, 1, 1, 1] → [B, 3, 256, 256] in [-1, 1]. 93,480,259 parameters at width 64 and 8
    levels, 54,406,595 of them the decoder's.

    Args:
        width: channels of the first level.
        levels: halvings; the deepest level is joined without weight and without norm.
    """

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        channels = [width * 2 ** min(level, 3) for level in range(levels)]
        self.image_encoder, self.refined_encoder = StructureEncoder(channels), StructureEncoder(channels)
        shared = [3 * c for c in channels[:-1]] + [2 * channels[-1]]  # from above, and two skips; at the bottom, both
        self.decoder = nn.ModuleList(_up(i, o, 4) for i, o in zip(shared, [3, *channels[:-1]], strict=True))

    def forward(self, image: Tensor, refined: Tensor, weight: Tensor) -> Tensor:
        of_image, of_refined = self.image_encoder(image), self.refined_encoder(refined)
        features = torch.cat((of_image[-1], of_refined[-1]), dim=1)
        for level in range(len(self.decoder) - 1, -1, -1):
            if level < len(self.decoder) - 1:
                features = torch.cat((features, weight * of_image[level], of_refined[level]), dim=1)  # Eq. (1)
            features = self.decoder[level](F.relu(features))
            if level:
                features = F.instance_norm(features)
        return torch.tanh(features)


def skip_weight(mask: Tensor, mode: str, *, reference: float) -> Tensor:
    """The weight of the holed image's skips, per sample, [B, 1, 1, 1].

    Args:
        mask: 1 in the hole, [B, 1, H, W].
        mode: `literal` 1/N_M (Eq. 1), which all but cuts the skips and depends on the resolution; `inverse_ratio`
            min(1, reference / hole ratio); `none` 1.
        reference: hole ratio up to which the weight is 1.
    """
    ratio = hole_ratio(mask).view(-1, 1, 1, 1)
    if mode == "literal":
        return 1 / (ratio * mask[0].numel()).round().clamp_min(1)
    if mode == "inverse_ratio":
        return (reference / ratio.clamp_min(reference)).to(mask.dtype)
    return torch.ones_like(ratio)


@dataclass(frozen=True)
class Refined:
    """What each stage drew, images in [-1, 1], [B, 3, H, W]; None where it did not run.

    Attributes:
        coarse: the prior's face, I_c.
        identity: IFR's raw output, I_o.
        identity_completed: I_o in the hole, the image elsewhere, I_IFR.
        predicted: SFR's raw output, I_out.
        codes: the decoder's, of each of its layers, [B, layers, width of a code].
    """

    coarse: Tensor
    identity: Tensor | None = None
    identity_completed: Tensor | None = None
    predicted: Tensor | None = None
    codes: Tensor | None = None


class ISFRNet(Method):
    """The paper's two phases after a frozen prior: IFR (Eq. 2 to 5), then SFR on the frozen IFR (Eq. 6 to 10).

    A prior from a published file that no stage trains is left out of checkpoints: they name it by path and SHA-256. Any
    other prior belongs to the run and is saved with it.
    """

    config: ISFRNetConfig
    frozen = ("vgg",)

    def __init__(
        self, config: ISFRNetConfig, steps: Mapping[str, int], features: Mapping[str, nn.Module],
        prior: tuple[Encoder, StyleGAN2] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, steps)
        self.psp_encoder, self.psp_decoder = prior or build_prior(config.psp)
        trains_prior = steps["prior"] > 0
        if config.psp.checkpoint is not None:
            self.published = PRIOR
            self.frozen = ("vgg",) if trains_prior else ("vgg", *PRIOR)
        self.psp_encoder.requires_grad_(False)
        self.psp_decoder.requires_grad_(False).eval()
        self.faces: OutputShards | None = None
        if trains_prior and config.prior_weights.adversarial:
            self.prior_discriminator = self._discriminator()
        if config.variant != "psp_sfr":
            self.ifr, self.ifr_discriminator = IdentityRefiner(config.width), self._discriminator()
        if config.variant != "psp_ifr":
            self.sfr = StructureRefiner(config.sfr_width, config.levels)
            self.sfr_discriminator = self._discriminator()
        self.vgg: FeatureNetwork | None = next(iter(features.values()), None)

    @staticmethod
    def known_from(config: ISFRNetConfig, networks: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
        """A prior in the sizes of the saved one, if one is saved: the file that it began from is not needed."""
        if "psp_encoder" not in networks:
            return {}
        design = design_of(networks["psp_encoder"], networks["psp_decoder"])
        return {"prior": design.build(random_noise=config.psp.random_noise)}

    def _discriminator(self) -> PatchDiscriminator:
        return PatchDiscriminator(width=self.config.discriminator_width, std=STD, bias=True, spectral_last=False)

    def stages(self) -> tuple[Stage, ...]:
        config = self.config
        found = [self._stage("prior", self.draw_prior, self.judge_prior, self.prior_loss, config.prior_optimizer)]
        if config.variant != "psp_sfr":
            found.append(self._stage("ifr", self.draw_identity, self.judge_ifr, self.ifr_loss, config.optimizer))
        if config.variant != "psp_ifr":
            found.append(self._stage("sfr", self.draw_structure, self.judge_sfr, self.sfr_loss, config.optimizer))
        return tuple(found)

    def _stage(
        self, name: str, draw: Callable[[Batch], Refined], judge: Loss, loss: Loss, optimizer: OptimizerConfig
    ) -> Stage:
        """Discriminator first, then generator; without an adversarial weight there is no discriminator to train."""
        lambdas = getattr(self.config, f"{name}_weights").model_dump()
        trains, given = (name,), ()
        if name == "prior":
            trains, given = (("psp_encoder",), ("psp_decoder",)) if self.config.psp.train == "encoder" else (PRIOR, ())
        updates = [Update("generator", trains, loss, lambdas, optimizer)]
        if lambdas["adversarial"] and hasattr(self, f"{name}_discriminator"):
            updates.insert(0, Update("discriminator", (f"{name}_discriminator",), judge, adversarial.HALVES, optimizer))
        return Stage(name, self.steps[name], draw, tuple(updates), given)

    def draw_prior(self, batch: Batch) -> Refined:
        """The prior's forward, with gradients."""
        codes = self.psp_encoder(self._prior_input(to_signed(batch.image), batch.mask))
        return Refined(coarse=face_pool(self.psp_decoder(codes), batch.image.shape[-2:]), codes=codes)

    def draw_identity(self, batch: Batch) -> Refined:
        """IFR's forward; the prior costs no gradient."""
        image = to_signed(batch.image)
        coarse = self._remembered_face(image, batch.mask)
        identity = self._identity(image, coarse, batch.mask)
        return Refined(coarse, identity, composite(image, identity, batch.mask))

    def draw_structure(self, batch: Batch) -> Refined:
        """SFR's forward; prior and IFR cost no gradient."""
        image = to_signed(batch.image)
        with torch.no_grad():
            if self.config.variant == "psp_sfr":
                coarse = self._remembered_face(image, batch.mask)
                made = Refined(coarse, identity_completed=coarse)
            else:
                made = self.draw_identity(batch)
        predicted = self._structure(image, made.identity_completed, batch.mask)
        return Refined(made.coarse, made.identity, made.identity_completed, predicted)

    @torch.no_grad()
    def coarse(self, image: Tensor, mask: Tensor) -> Tensor:
        """I_c: the frozen prior's face at the image's size, in [-1, 1]."""
        return self._face(self._prior_input(image, mask)).to(image.dtype)

    def _face(self, given: Tensor) -> Tensor:
        return face_pool(self.psp_decoder(self.psp_encoder(given)), given.shape[-2:]).clamp(-1, 1)

    def _remembered_face(self, image: Tensor, mask: Tensor) -> Tensor:
        """`coarse`, read from `psp.cache` where this input has been seen before."""
        if self.config.psp.cache is None or image.is_meta:
            return self.coarse(image, mask)
        return self._recalled(self._prior_input(image, mask)).to(image.dtype)

    @torch._disable_dynamo
    def _recalled(self, given: Tensor) -> Tensor:
        if self.faces is None:
            self.faces = OutputShards(self.config.psp.cache, nn.ModuleList([self.psp_encoder, self.psp_decoder]))
        return self.faces.recall(given, self._face)

    def _prior_input(self, image: Tensor, mask: Tensor) -> Tensor:
        holed = _holed(image, mask, self.config.psp.hole_fill)
        return holed if self.psp_encoder.inputs == 3 else torch.cat((holed, mask), dim=1)

    def _identity(self, image: Tensor, coarse: Tensor, mask: Tensor) -> Tensor:
        seen = composite(image, coarse, mask) if self.config.ifr_input == "completed" else coarse
        return self.ifr(torch.cat((seen, mask), dim=1))

    def _structure(self, image: Tensor, refined: Tensor, mask: Tensor) -> Tensor:
        weight = skip_weight(mask, self.config.weighting, reference=self.config.reference_ratio)
        holed = _holed(image, mask, self.config.hole_fill)
        return self.sfr(torch.cat((holed, mask), dim=1), torch.cat((refined, mask), dim=1), weight)

    def judge_prior(self, batch: Batch, made: Refined, active: frozenset[str]) -> Terms:
        return self._judge(self.prior_discriminator, batch, made.coarse)

    def judge_ifr(self, batch: Batch, made: Refined, active: frozenset[str]) -> Terms:
        """Eq. (3), read with IFR's completed output: its input I_c, which is printed, would be a constant."""
        return self._judge(self.ifr_discriminator, batch, made.identity_completed)

    def judge_sfr(self, batch: Batch, made: Refined, active: frozenset[str]) -> Terms:
        return self._judge(self.sfr_discriminator, batch, made.predicted)

    def _judge(self, discriminator: nn.Module, batch: Batch, drawn: Tensor) -> Terms:
        image = to_signed(batch.image)
        logits, _ = discriminator(torch.cat((image, drawn.detach().to(image.dtype))))
        return adversarial.cross_entropy_discriminator(*logits.chunk(2))

    def prior_loss(self, batch: Batch, made: Refined, active: frozenset[str]) -> Terms:
        """pSp's squared error, features and code length over the whole face, and an adversarial term."""
        image, terms = to_signed(batch.image), {}
        if "reconstruction" in active:
            terms["reconstruction"] = (made.coarse.float() - image).square().mean()
        if "latent" in active:
            terms["latent"] = (made.codes.float() - self.psp_encoder.latent_avg).norm(2, dim=(1, 2)).mean()
        if "adversarial" in active:
            terms["adversarial"] = self._fooled(self.prior_discriminator, made.coarse)
        return terms | self._seen(batch, made.coarse, active)

    def ifr_loss(self, batch: Batch, made: Refined, active: frozenset[str]) -> Terms:
        """Eq. (5); without SFR the error of the whole image counts (section 4.2.1)."""
        terms: Terms = {}
        if "reconstruction" in active:
            image = to_signed(batch.image)
            if self.config.variant == "psp_ifr":
                terms["reconstruction"] = reconstruction.l1(made.identity, image)
            else:
                terms["reconstruction"] = reconstruction.l1_in_hole(made.identity, image, batch.mask)
        if "adversarial" in active:
            terms["adversarial"] = self._fooled(self.ifr_discriminator, made.identity_completed)
        return terms

    def sfr_loss(self, batch: Batch, made: Refined, active: frozenset[str]) -> Terms:
        """Eq. (10), all terms on the raw output."""
        terms: Terms = {}
        if "reconstruction" in active:
            terms["reconstruction"] = reconstruction.l1(made.predicted, to_signed(batch.image))
        if "total_variation" in active:
            terms["total_variation"] = total_variation(made.predicted, batch.mask)
        if "adversarial" in active:
            terms["adversarial"] = self._fooled(self.sfr_discriminator, made.predicted)
        return terms | self._seen(batch, made.predicted, active)

    def _fooled(self, discriminator: nn.Module, drawn: Tensor) -> Tensor:
        return adversarial.CROSS_ENTROPY_GENERATOR[self.config.generator_adversarial](discriminator(drawn)[0])

    def _seen(self, batch: Batch, drawn: Tensor, active: frozenset[str]) -> Terms:
        """Perceptual and style terms of VGG-16 after its first three pools."""
        losses = {"perceptual": perceptual.perceptual, "style": perceptual.style}
        wanted = {term: LAYERS["pconv"][term] for term in losses if term in active}
        if not wanted:
            return {}
        assert self.vgg is not None, "build_method was given no features, which training with these weights needs"
        names = {name for layers in wanted.values() for name in layers}
        predicted, true = paired_features(self.vgg, from_signed(drawn), batch.image, names)
        return {term: losses[term](predicted, true, layers) for term, layers in wanted.items()}

    def refine(self, image: Tensor, mask: Tensor) -> Refined:
        """All that the stages draw for an image in [0, 1]; nothing of what lies in the hole is looked at."""
        self.check_sides(image)
        image = to_signed(image * (1 - mask))
        coarse = self.coarse(image, mask)
        if self.config.variant == "psp_sfr":
            return Refined(coarse, identity_completed=coarse, predicted=self._structure(image, coarse, mask))
        identity = self._identity(image, coarse, mask)
        completed = composite(image, identity, mask)
        predicted = identity if self.config.variant == "psp_ifr" else self._structure(image, completed, mask)
        return Refined(coarse, identity, completed, predicted)

    def inpaint(self, image: Tensor, mask: Tensor) -> Tensor:
        return from_signed(self.refine(image, mask).predicted)

    def previews(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        made = self.refine(image, mask)
        seen = {"prior": made.coarse, "identity": made.identity_completed}
        return {name: from_signed(drawn) for name, drawn in seen.items()}

    def inference_networks(self) -> tuple[str, ...]:
        return tuple(name for name in self.networks() if not name.endswith("_discriminator"))


def build_prior(config: PSPConfig) -> tuple[Encoder, StyleGAN2]:
    """Encoder and decoder from a published-format file, or freshly drawn in the configured sizes.

    On torch's meta device, where only shapes are asked for, no file is read and sizes are the configured ones.

    Raises:
        WeightsError: the file is absent, altered or of another architecture.
    """
    if config.checkpoint is None or torch.get_default_device().type == "meta":
        design = Design(
            image_size=config.image_size,
            width=config.width,
            units=tuple(config.units),
            code=config.code,
            widths=decoder_widths(config.decoder_size, most=config.decoder_width, product=config.decoder_product),
            mapping_layers=config.mapping_layers,
        )
        return design.build(random_noise=config.random_noise)
    try:
        content = weights.load("method.psp.checkpoint", config.checkpoint, sha256=config.sha256)
    except WeightsError as error:
        raise WeightsError(f"{error}; if a file's options are refused, re-save them as plain types") from error
    return load_published(content, truncate=config.truncate, random_noise=config.random_noise)


def _holed(image: Tensor, mask: Tensor, fill: float) -> Tensor:
    return image * (1 - mask) + fill * mask


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    return _drawn(nn.Conv2d(inputs, outputs, kernel, stride, padding))


def _up(inputs: int, outputs: int, kernel: int, *, output_padding: int = 0) -> nn.ConvTranspose2d:
    return _drawn(nn.ConvTranspose2d(inputs, outputs, kernel, 2, 1, output_padding))


def _drawn(layer: Convolution) -> Convolution:
    """N(0, 0.02²) weights and zero bias."""
    nn.init.normal_(layer.weight, 0.0, STD)
    nn.init.zeros_(layer.bias)
    return layer
