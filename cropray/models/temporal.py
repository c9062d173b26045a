"""A network that sees each pixel by itself: attention over months, after the lightweight temporal attention
encoder (L-TAE; Garnot and Landrieu 2020, doi:10.1007/978-3-030-65742-0_12).

Each head has one learnt query, and its own channels of the months' embeddings. Beside the values, a month is
described by its validity and its calendar month, and months without a view are left out. A network that is
told the place of its pixels (as Presto; Tseng et al. 2023, arXiv:2304.14065) knows what is grown there and
when. Shape suffixes: P pixels, T months, C bands, D width, A attention heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cropray.models.dual_unet3d import CropNetwork, NetworkSpec

_ATTENTION_HEADS = 8
_KEY_CHANNELS = 8
_DROPOUT = 0.2
# The place is not told for a tenth of the samples of a training, and otherwise told within a tenth of the
# spread of all places: a network shall not learn single fields by heart, and shall do without.
_PLACE_DROPOUT = _PLACE_NOISE = 0.1
_FARTHEST = 3.0  # standard deviations


class Encoder(nn.Module):
    """The months of pixels (P, T, C), the last two of them validities, to features (P, D)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width), nn.ReLU())
        self.mix = nn.Sequential(nn.Conv1d(width, width, 3, padding=1), nn.ReLU())
        self.calendar = nn.Embedding(13, width)  # 0: unknown
        self.norm = nn.LayerNorm(width)
        self.keys = nn.Linear(width, _ATTENTION_HEADS * _KEY_CHANNELS)
        self.queries = nn.Parameter(torch.randn(_ATTENTION_HEADS, _KEY_CHANNELS) * _KEY_CHANNELS**-0.5)
        self.last = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.LayerNorm(2 * width),
            nn.ReLU(),
            nn.Dropout(_DROPOUT),
            nn.Linear(2 * width, width),
            nn.ReLU(),
        )

    def forward(self, x_ptc: Tensor, month_pt: Tensor) -> Tensor:
        seen_pt = x_ptc[..., -2:].amax(-1) > 0
        x_ptd = (self.embed(x_ptc) + self.calendar(month_pt)) * seen_pt[..., None]
        x_ptd = self.norm(x_ptd + self.mix(x_ptd.transpose(1, 2)).transpose(1, 2))
        keys_pta = self.keys(x_ptd).unflatten(-1, (_ATTENTION_HEADS, -1)).mul(self.queries).sum(-1)
        # Without any view all months count alike: their embeddings say that nothing is known.
        hidden_pt1 = ~(seen_pt | ~seen_pt.any(1, keepdim=True))[..., None]
        weights_pta = keys_pta.masked_fill(hidden_pt1, float("-inf")).softmax(dim=1)
        values_ptac = x_ptd.unflatten(-1, (_ATTENTION_HEADS, -1))
        features_pd: Tensor = self.last(torch.einsum("pta,ptac->pac", weights_pta, values_ptac).flatten(1))
        return features_pd


class TemporalNetwork(CropNetwork):
    """Any height and width, any gaps. `width` is that of the embedding of a month.

    Several `members` share the heads. In training each sees its own part of a batch, so that they stay
    different, and an epoch costs as much as that of one; in evaluation their probabilities are averaged.
    """

    needs_months = True

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        width = -(-spec.width // _ATTENTION_HEADS) * _ATTENTION_HEADS
        self.needs_places = spec.places is not None
        channels = spec.s2_bands + spec.s1_bands + 2 + (3 if self.needs_places else 0)
        self.encoders = nn.ModuleList(Encoder(channels, width) for _ in range(spec.members))
        self._width = width
        self._add_heads(width)

    def features(
        self, s1: Tensor, s2: Tensor, valid: Tensor, month_bt: Tensor | None, place_b2: Tensor | None
    ) -> Tensor:
        B, _, T, H, W = s1.shape
        if month_bt is None:
            month_bt = torch.zeros(B, T, dtype=torch.long, device=s1.device)
        x_bcthw = torch.cat((s2, s1, *self._placed(place_b2, s1), valid.to(s1.dtype)), dim=1)
        x_bnc = x_bcthw.permute(0, 3, 4, 2, 1).reshape(B, H * W, T, -1)
        n = len(self.encoders)
        features = []
        for k, encoder in enumerate(self.encoders):
            part = slice(k, None, n) if self.training else slice(None)
            x_ptc = x_bnc[part].flatten(0, 1)
            month_pt = month_bt[part, None].expand(-1, H * W, -1).flatten(0, 1)
            features.append(encoder(x_ptc, month_pt).reshape(-1, H, W, self._width))
        together = torch.cat(features)
        if self.training:  # in the order of the samples
            order = torch.cat([torch.arange(k, B, n, device=s1.device) for k in range(n)])
            together = together[order.argsort()]
        return together.permute(0, 3, 1, 2)

    def _placed(self, place_b2: Tensor | None, like: Tensor) -> tuple[Tensor, ...]:
        """Longitude and latitude in standard deviations, and whether they are known: (B, 3, T, H, W)."""
        if self._spec.places is None:
            return ()
        B, _, *size = like.shape
        if place_b2 is None:
            return (like.new_zeros(B, 3, *size),)
        mean_2, std_2 = torch.tensor(self._spec.places, device=like.device).T
        place_b2 = ((place_b2 - mean_2) / std_2).clamp(-_FARTHEST, _FARTHEST)
        known_b1 = place_b2.isfinite().all(1, keepdim=True)
        if self.training:
            place_b2 = place_b2 + _PLACE_NOISE * torch.randn_like(place_b2)
            known_b1 = known_b1 & (torch.rand_like(place_b2[:, :1]) >= _PLACE_DROPOUT)
        told_b3 = torch.cat((place_b2.where(known_b1, 0.0), known_b1.to(place_b2.dtype)), dim=1)
        return (told_b3.to(like.dtype)[:, :, None, None, None].expand(B, 3, *size),)

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        logits = super().forward(*inputs, **named)
        n = 1 if self.training else len(self.encoders)
        if n == 1:
            return logits
        return logits.reshape(n, -1, *logits.shape[1:]).sigmoid().mean(0).logit(1e-7)
