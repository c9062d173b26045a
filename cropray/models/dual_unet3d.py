"""The dual 3-D U-Net: per sensor a temporal stem and a 2-D U-Net, then joint heads.

Architecture and tensor names are those of the published network (width 64, 6 months, 21 classes: 62,134,293
parameters), so that its weights can be imported. Shape suffixes: B samples, C channels, T months, H rows,
W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from cropray.bands import S1_NAMES, S2_NAMES

Head = Literal["linear", "conv"]

MAIN = "main"
"""The head that every network has. Its tensors have the published names, `final_conv.*`."""

Kind = Literal["dual_unet3d", "temporal"]

SIDE_MULTIPLES: dict[Kind, int] = {"dual_unet3d": 16, "temporal": 1}
"""Height and width must be multiples of these: the U-Net halves them four times."""

HEAD_CHANNELS = 32
"""Inside the fine-tuning head, at any width as published: width / 2 channels of a narrow network would
squeeze together classes that its body separates."""


@dataclass(frozen=True)
class HeadSpec:
    """An auxiliary head, for another class list. Its tensors are `heads.<name>.*`."""

    name: str
    n_classes: int
    kind: Head = "linear"


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build a `CropNetwork`."""

    n_classes: int  # of the main head
    width: int = 64  # scales every layer
    months: int = 6
    head: Head = "linear"  # the main one: a convolution (pretraining), or two ("conv", fine-tuning)
    stem: int | None = None  # channels of the temporal stem; None: width / 2
    validity: bool = False  # whether each sensor has a channel more that marks valid pixels
    heads: tuple[HeadSpec, ...] = ()
    kind: Kind = "dual_unet3d"
    s2_bands: int = len(S2_NAMES)
    s1_bands: int = len(S1_NAMES)
    members: int = 1  # networks of kind "temporal" that are averaged
    # Mean and standard deviation of longitude and latitude of the training samples; None: not told.
    places: tuple[tuple[float, float], tuple[float, float]] | None = None

    @property
    def side_multiple(self) -> int:
        return SIDE_MULTIPLES[self.kind]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> NetworkSpec:
        """From a dict of `asdict`. Raises TypeError for unknown fields."""
        places = data.get("places") and tuple(map(tuple, data["places"]))
        heads = tuple(HeadSpec(**head) for head in data.get("heads", ()))
        return cls(**{**data, "heads": heads, "places": places})

    def build(self) -> CropNetwork:
        if self.kind == "temporal":
            from cropray.models.temporal import TemporalNetwork

            return TemporalNetwork(self)
        return DualUNet3D(self)

    def build_empty(self) -> CropNetwork:
        """The network on the device "meta": shapes without memory."""
        with torch.device("meta"):
            return self.build()

    def count_parameters(self) -> int:
        return sum(x.numel() for x in self.build_empty().parameters())

    def mismatch(self, weights: Mapping[str, Tensor]) -> str:
        """How tensors by name differ from those of this network, in torch's words; empty if they fit."""
        try:
            self.build_empty().load_state_dict(weights, assign=True)
        except RuntimeError as error:
            return shorten(str(error), 400, placeholder=" …")
        return ""


class MonthConv(nn.Conv3d):
    """A convolution over all months, (B, C, T, H, W) to (B, out, 1, H, W), computed as a 2-D one.

    The 2-D convolution reads the same memory as months × pixels. The 3-D one gives the same numbers, but on a
    CPU with one thread it copies channels-last memory, and the whole stem takes 1.1 to 2.8 times as long.
    """

    def forward(self, x_bcthw: Tensor) -> Tensor:
        y_bc1n = conv2d(x_bcthw.flatten(3), self.weight.squeeze(-1), self.bias)
        return y_bc1n.reshape(*y_bc1n.shape[:3], *x_bcthw.shape[3:])


class Convolutions(nn.Module):
    """Layers in a sequence, under the published name `conv`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class TemporalStem(Convolutions):
    """(B, C, T, H, W) to (B, out, H, W): mixes neighbours in space and time, then all months."""

    def __init__(self, in_channels: int, out_channels: int, months: int) -> None:
        super().__init__(
            nn.Conv3d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
            MonthConv(out_channels, out_channels, (months, 1, 1)),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        # Channels last: on a CPU the first convolution alone gets up to 3 times faster.
        return super().forward(x.contiguous(memory_format=torch.channels_last_3d)).squeeze(2)


def double_conv(in_channels: int, out_channels: int) -> Convolutions:
    """3 × 3 convolution, batch norm and ReLU, twice."""
    return Convolutions(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) of four levels: `width` × 1, 2, 4, 8, with a bottleneck × 16."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.ups = nn.ModuleList()
        self.downs = nn.ModuleList()
        self.pool = nn.MaxPool2d(2)
        levels = [width, 2 * width, 4 * width, 8 * width]
        for below, level in zip([in_channels, *levels], levels, strict=False):
            self.downs.append(double_conv(below, level))
        for level in reversed(levels):
            self.ups.append(nn.ConvTranspose2d(2 * level, level, 2, stride=2))
            self.ups.append(double_conv(2 * level, level))
        self.bottleneck = double_conv(levels[-1], 2 * levels[-1])

    def forward(self, x_bchw: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for down in self.downs:
            x_bchw = down(x_bchw)
            skips.append(x_bchw)
            x_bchw = self.pool(x_bchw)
        x_bchw = self.bottleneck(x_bchw)
        for i in range(0, len(self.ups), 2):
            upsampled_bchw = self.ups[i](x_bchw)
            x_bchw = self.ups[i + 1](torch.cat((skips.pop(), upsampled_bchw), dim=1))
        return x_bchw


class Branch(nn.Module):
    """One sensor: (B, C, T, H, W) to (B, width, H, W)."""

    def __init__(self, in_channels: int, stem: int, width: int, months: int) -> None:
        super().__init__()
        self.conv3d = TemporalStem(in_channels, stem, months)
        self.unet = UNet(stem, width)

    def forward(self, x_bcthw: Tensor) -> Tensor:
        features_bchw: Tensor = self.unet(self.conv3d(x_bcthw))
        return features_bchw


def _head(kind: Head, in_channels: int, n_classes: int) -> nn.Module:
    """A 1 × 1 convolution, or for fine-tuning a 3 × 3 one, batch norm, ReLU and a 1 × 1 one."""
    if kind == "linear":
        return nn.Conv2d(in_channels, n_classes, 1)
    return Convolutions(
        nn.Conv2d(in_channels, HEAD_CHANNELS, 3, padding=1),
        nn.BatchNorm2d(HEAD_CHANNELS),
        nn.ReLU(inplace=True),
        nn.Conv2d(HEAD_CHANNELS, n_classes, 1),
    )


def head_prefix(name: str) -> str:
    """The prefix of the names of a head's tensors."""
    return "final_conv." if name == MAIN else f"heads.{name}."


class CropNetwork(nn.Module):
    """Logits (B, K, H, W) from the months of both sensors. Classes are not exclusive: sigmoid, not softmax.

    Subclasses make the features that all heads share. Whether they need to be told of time and place beside
    the values is their own.
    """

    needs_months = False
    needs_places = False

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self._spec = spec

    def _add_heads(self, features: int) -> None:
        """The last layers of a network, after its body."""
        spec = self._spec
        self.final_conv = _head(spec.head, features, spec.n_classes)
        self.heads = nn.ModuleDict({x.name: _head(x.kind, features, x.n_classes) for x in spec.heads})

    def features(
        self, s1: Tensor, s2: Tensor, valid: Tensor, month_bt: Tensor | None, place_b2: Tensor | None
    ) -> Tensor:
        """(B, F, H, W) from checked inputs."""
        raise NotImplementedError

    def forward(
        self,
        s1_bcthw: Tensor,
        s2_bcthw: Tensor,
        valid_b2thw: Tensor,
        head: str = MAIN,
        month_bt: Tensor | None = None,
        place_b2: Tensor | None = None,
    ) -> Tensor:
        """The logits of one head.

        `valid_b2thw` is 1 or 0 of any type, channel 0 for s2 and 1 for s1 (`Normalisation.apply`);
        `month_bt` are calendar months, 1 to 12, and `place_b2` longitudes and latitudes, for networks that
        need them (NaN or None: unknown). Raises ValueError if months,
        bands or sides do not fit the network.
        """
        self._check("s1", s1_bcthw, self._spec.s1_bands)
        self._check("s2", s2_bcthw, self._spec.s2_bands)
        self._check("valid", valid_b2thw, 2)
        features_bchw = self.features(s1_bcthw, s2_bcthw, valid_b2thw, month_bt, place_b2)
        logits_bkhw: Tensor = (self.final_conv if head == MAIN else self.heads[head])(features_bchw)
        return logits_bkhw

    def head_parameters(self, head: str = MAIN) -> list[nn.Parameter]:
        return list((self.final_conv if head == MAIN else self.heads[head]).parameters())

    @property
    def body(self) -> list[nn.Module]:
        """The parts that all heads share."""
        return [part for name, part in self.named_children() if name not in ("final_conv", "heads")]

    def body_parameters(self) -> list[nn.Parameter]:
        return [parameter for part in self.body for parameter in part.parameters()]

    def _check(self, name: str, x_bcthw: Tensor, bands: int) -> None:
        shape, months, multiple = tuple(x_bcthw.shape), self._spec.months, self._spec.side_multiple
        if len(shape) != 5 or shape[1:3] != (bands, months) or any(n % multiple for n in shape[3:]):
            raise ValueError(
                f"{name} is {shape}, expected (B, {bands}, {months}, H, W) with H and W multiples of "
                f"{multiple}"
            )


class DualUNet3D(CropNetwork):
    """The published network. Without a channel of validity, as there, a gap looks like a measurement."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        self.validity, stem = spec.validity, spec.stem or spec.width // 2
        self.unet3d_s1 = Branch(spec.s1_bands + spec.validity, stem, spec.width, spec.months)
        self.unet3d_s2 = Branch(spec.s2_bands + spec.validity, stem, spec.width, spec.months)
        self._add_heads(2 * spec.width)
        # As the stem lays out activations: on a CPU, a step of the 2-D part takes 0.8 of the time at width 8
        # and 16, and as long at 64. With activations alone in this layout it would take 1.3 of the time.
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)

    def features(
        self, s1: Tensor, s2: Tensor, valid: Tensor, _month_bt: Tensor | None, _place_b2: Tensor | None
    ) -> Tensor:
        if self.validity:
            valid = valid.to(s1.dtype)
            s1, s2 = torch.cat((s1, valid[:, 1:]), dim=1), torch.cat((s2, valid[:, :1]), dim=1)
        return torch.cat((self.unet3d_s1(s1), self.unet3d_s2(s2)), dim=1)
