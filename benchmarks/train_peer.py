"""The peer of `train.py`: the published network and its training as one writes them in a day of PyTorch.

One file, one process, default memory layout, AdamW and binary cross-entropy as PyTorch brings them, bfloat16
by autocast on a GPU. Tensors have the names of the published network, so that weights can be exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

NODATA = -32768
S2_MEAN = (0.05, 0.08, 0.08, 0.13, 0.25, 0.30, 0.31, 0.33, 0.22, 0.14)
S2_STD = (0.03, 0.04, 0.05, 0.05, 0.08, 0.10, 0.10, 0.11, 0.08, 0.07)
S1_MEAN, S1_STD = (-9.5, -16.8), (2.7, 2.6)
CLIP = 6.0

StoredBatch = tuple[Tensor, Tensor, Tensor]
"""s1 (B, 2, T, H, W) and s2 (B, 10, T, H, W) as stored integers, label (B, H, W) uint8."""


class Stem(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, months: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(out_channels, out_channels, (months, 1, 1)),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x)).squeeze(2)


class Double(nn.Module):
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

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x))


class UNet(nn.Module):
    def __init__(self, in_channels: int, features: list[int]) -> None:
        super().__init__()
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        self.pool = nn.MaxPool2d(2, 2)
        for feature in features:
            self.downs.append(Double(in_channels, feature))
            in_channels = feature
        for feature in reversed(features):
            self.ups.append(nn.ConvTranspose2d(feature * 2, feature, 2, 2))
            self.ups.append(Double(feature * 2, feature))
        self.bottleneck = Double(features[-1], features[-1] * 2)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottleneck(x)
        for up, double in zip(self.ups[::2], self.ups[1::2], strict=True):
            x = double(torch.cat([skips.pop(), up(x)], dim=1))
        return x


class Branch(nn.Module):
    def __init__(self, in_channels: int, stem: int, width: int, months: int) -> None:
        super().__init__()
        self.conv3d = Stem(in_channels, stem, months)
        self.unet = UNet(stem, [width, 2 * width, 4 * width, 8 * width])

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.unet(self.conv3d(x)))


class PlainNetwork(nn.Module):
    """Both branches, each with a channel that says what is valid, and the 1 × 1 convolution."""

    def __init__(self, n_classes: int, width: int, months: int = 6, stem: int | None = None) -> None:
        super().__init__()
        self.unet3d_s1 = Branch(3, stem or width // 2, width, months)
        self.unet3d_s2 = Branch(11, stem or width // 2, width, months)
        self.final_conv = nn.Conv2d(2 * width, n_classes, 1)

    def forward(self, s1: Tensor, s2: Tensor) -> Tensor:
        return cast(Tensor, self.final_conv(torch.cat([self.unet3d_s1(s1), self.unet3d_s2(s2)], dim=1)))


def normalised(stored: Tensor, scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Floats, missing pixels 0, and the channel that says which are there."""
    shape = (1, -1, 1, 1, 1)
    means, stds = (torch.tensor(values, device=stored.device).view(shape) for values in (mean, std))
    valid = (stored != NODATA).all(dim=1, keepdim=True).float()
    values = ((stored.float() * scale - means) / stds).clamp(-CLIP, CLIP) * valid
    return torch.cat([values, valid], dim=1)


class PlainLoop:
    """A network in training."""

    def __init__(self, network: PlainNetwork, n_classes: int, lr: float, device: torch.device) -> None:
        self.network, self.n_classes, self.device = network.to(device), n_classes, device
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=lr)

    def logits(self, s1: Tensor, s2: Tensor) -> Tensor:
        s1 = normalised(s1.to(self.device, non_blocking=True), 0.01, S1_MEAN, S1_STD)
        s2 = normalised(s2.to(self.device, non_blocking=True), 0.0001, S2_MEAN, S2_STD)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return cast(Tensor, self.network(s1, s2))

    def epoch(self, batches: Iterable[StoredBatch]) -> list[float]:
        """The loss of each step."""
        self.network.train()
        losses = []
        for s1, s2, label in batches:
            target = one_hot(label.to(self.device, non_blocking=True).long(), self.n_classes)
            loss = binary_cross_entropy_with_logits(
                self.logits(s1, s2).float(), target.movedim(-1, 1).float()
            )
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).tolist()
