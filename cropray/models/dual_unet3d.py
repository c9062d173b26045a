"""The dual 3-D U-Net: one branch a sensor, a temporal stem and a 2-D U-Net each, one joint head.

The architecture and the names of the tensors are those of the published network (width 64,
6 months, 21 classes: 62,134,293 parameters), so that its weights can be read. Shape suffixes:
B samples, C channels, T months, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from cropray.bands import S1_NAMES, S2_NAMES

Head = Literal["linear", "conv"]

MAIN = "main"
"""The head that a network has in any case; its tensors have the published names, `final_conv.*`."""

SIDE_MULTIPLE = 16
"""Height and width must be multiples of this: four levels of halving."""

HEAD_CHANNELS = 32
"""Inside the fine-tuning head, as published, whatever the width: a narrow network's head of width / 2
channels would squeeze together the classes that its body tells apart."""


@dataclass(frozen=True)
class HeadSpec:
    """A head beside the main one, for another class list on the same body.

    Its tensors are `heads.<name>.*`.
    """

    name: str
    n_classes: int
    kind: Head = "linear"


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build the network anew; what it means is said in `DualUNet3D`."""

    n_classes: int
    width: int = 64
    months: int = 6
    head: Head = "linear"
    stem: int | None = None
    validity: bool = False
    heads: tuple[HeadSpec, ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> NetworkSpec:
        """What `asdict` made. Raises TypeError for other fields than these."""
        return cls(**{**data, "heads": tuple(HeadSpec(**head) for head in data.get("heads", ()))})

    def build(self) -> DualUNet3D:
        return DualUNet3D(**vars(self))

    def build_empty(self) -> DualUNet3D:
        """The network's shapes without any memory behind them."""
        with torch.device("meta"):
            return self.build()


class OverMonths(nn.Conv3d):
    """A convolution over all months, (B, C, T, H, W) to (B, out, 1, H, W), in two dimensions.

    Months and pixels are those two, of the same memory. The 3-D convolution would give the same, but on a
    CPU with one thread it copies channels-last memory: the whole stem took 1.1 to 2.8 times as long.
    """

    def forward(self, x_bcthw: Tensor) -> Tensor:
        y_bc1n = conv2d(x_bcthw.flatten(3), self.weight.squeeze(-1), self.bias)
        return y_bc1n.reshape(*y_bc1n.shape[:3], *x_bcthw.shape[3:])


class TemporalStem(nn.Module):
    """(B, C, T, H, W) to (B, out, H, W): mixes neighbours in space and time, then all months."""

    def __init__(self, in_channels: int, out_channels: int, months: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
            OverMonths(out_channels, out_channels, (months, 1, 1)),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x_bcthw: Tensor) -> Tensor:
        # Channels last: on a CPU the first convolution alone is up to 3 times faster so.
        x_bcthw = x_bcthw.contiguous(memory_format=torch.channels_last_3d)
        features_bchw: Tensor = self.conv(x_bcthw).squeeze(2)
        return features_bchw


class DoubleConv(nn.Module):
    """Twice 3 × 3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x_bchw: Tensor) -> Tensor:
        y_bchw: Tensor = self.conv(x_bchw)
        return y_bchw


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) of four levels: `width` × 1, 2, 4, 8, bottleneck × 16."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.ups = nn.ModuleList()
        self.downs = nn.ModuleList()
        self.pool = nn.MaxPool2d(2)
        levels = [width, 2 * width, 4 * width, 8 * width]
        for below, level in zip([in_channels, *levels], levels, strict=False):
            self.downs.append(DoubleConv(below, level))
        for level in reversed(levels):
            self.ups.append(nn.ConvTranspose2d(2 * level, level, 2, stride=2))
            self.ups.append(DoubleConv(2 * level, level))
        self.bottleneck = DoubleConv(levels[-1], 2 * levels[-1])

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


class ConvHead(nn.Module):
    """The fine-tuning head: 3 × 3 convolution, batch norm, ReLU, 1 × 1 convolution."""

    def __init__(self, in_channels: int, hidden: int, n_classes: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 3, padding=1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, n_classes, 1),
        )

    def forward(self, x_bchw: Tensor) -> Tensor:
        logits_bkhw: Tensor = self.conv(x_bchw)
        return logits_bkhw


def _head(kind: Head, in_channels: int, n_classes: int) -> nn.Module:
    if kind == "linear":
        return nn.Conv2d(in_channels, n_classes, 1)
    return ConvHead(in_channels, HEAD_CHANNELS, n_classes)


def _channels_last(network: nn.Module) -> None:
    """Lay the 2-D weights out as the activations are: with those of the stem, channels last all the way.

    On a CPU a step of the 2-D part takes 0.8 of the time of the default layout (width 8 and 16; as much at
    64, and 1.3 times as much where only the activations are channels last).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def head_prefix(name: str) -> str:
    """With what the names of a head's tensors begin."""
    return "final_conv." if name == MAIN else f"heads.{name}."


class DualUNet3D(nn.Module):
    """Logits (B, K, H, W) of both sensors' months; classes are not exclusive (sigmoid, not softmax).

    `width` scales every layer; the temporal stem has width / 2 channels, or `stem`. `head` is the
    pretraining's 1 × 1 convolution ("linear") or the fine-tuning's two convolutions ("conv"). With
    `validity` each sensor has one more channel, which says where and when it saw something: without it
    a gap looks like a measurement of the same value. The published network has none. `heads` are
    further class lists on the same features.
    """

    def __init__(
        self,
        n_classes: int,
        width: int = 64,
        months: int = 6,
        head: Head = "linear",
        *,
        stem: int | None = None,
        validity: bool = False,
        heads: Sequence[HeadSpec] = (),
    ) -> None:
        super().__init__()
        self.months, self.validity = months, validity
        stem = stem or width // 2
        self.unet3d_s1 = Branch(len(S1_NAMES) + validity, stem, width, months)
        self.unet3d_s2 = Branch(len(S2_NAMES) + validity, stem, width, months)
        self.final_conv = _head(head, 2 * width, n_classes)
        self.heads = nn.ModuleDict(
            {other.name: _head(other.kind, 2 * width, other.n_classes) for other in heads}
        )
        _channels_last(self)

    def forward(self, s1_bcthw: Tensor, s2_bcthw: Tensor, valid_b2thw: Tensor, head: str = MAIN) -> Tensor:
        """The logits of one head.

        `valid_b2thw` is 1 or 0 of any type, channel 0 of s2 and 1 of s1, as `Normalisation.apply` has it.
        Raises ValueError where months, bands or sides do not fit the network.
        """
        self._check("s1", s1_bcthw, len(S1_NAMES))
        self._check("s2", s2_bcthw, len(S2_NAMES))
        if self.validity:
            self._check("valid", valid_b2thw, 2)
            valid_b2thw = valid_b2thw.to(s1_bcthw.dtype)
            s1_bcthw = torch.cat((s1_bcthw, valid_b2thw[:, 1:]), dim=1)
            s2_bcthw = torch.cat((s2_bcthw, valid_b2thw[:, :1]), dim=1)
        features_bchw = torch.cat((self.unet3d_s1(s1_bcthw), self.unet3d_s2(s2_bcthw)), dim=1)
        logits_bkhw: Tensor = (self.final_conv if head == MAIN else self.heads[head])(features_bchw)
        return logits_bkhw

    def head_parameters(self, head: str = MAIN) -> list[nn.Parameter]:
        return list((self.final_conv if head == MAIN else self.heads[head]).parameters())

    def body_parameters(self) -> list[nn.Parameter]:
        """Those that all heads share."""
        return [*self.unet3d_s1.parameters(), *self.unet3d_s2.parameters()]

    def _check(self, name: str, x_bcthw: Tensor, bands: int) -> None:
        shape = tuple(x_bcthw.shape)
        if len(shape) != 5 or shape[1:3] != (bands, self.months) or any(n % SIDE_MULTIPLE for n in shape[3:]):
            raise ValueError(
                f"{name} is {shape}; wanted (B, {bands}, {self.months}, H, W) with H and W multiples "
                f"of {SIDE_MULTIPLE}"
            )
