"""A network that sees each pixel by itself: attention over months, after the lightweight temporal attention
encoder (L-TAE; Garnot and Landrieu 2020, doi:10.1007/978-3-030-65742-0_12).

Each head has one learnt query, and its own channels of the months' embeddings. Beside the values, a month is
described by its validity and its calendar month, and months without a view are left out. Shape suffixes:
P pixels, T months, C bands, D width, A attention heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cropray.models.dual_unet3d import CropNetwork, NetworkSpec

_ATTENTION_HEADS = 8
_KEY_CHANNELS = 8
_DROPOUT = 0.2


class TemporalNetwork(CropNetwork):
    """Any height and width, any gaps. `width` is that of the embedding of a month."""

    needs_months = True

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        width = -(-spec.width // _ATTENTION_HEADS) * _ATTENTION_HEADS
        channels = spec.s2_bands + spec.s1_bands + 2
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
        self._add_heads(width)

    def features(self, s1: Tensor, s2: Tensor, valid: Tensor, month_bt: Tensor | None) -> Tensor:
        B, _, T, H, W = s1.shape
        x_bcthw = torch.cat((s2, s1, valid.to(s1.dtype)), dim=1)
        x_ptc = x_bcthw.permute(0, 3, 4, 2, 1).reshape(B * H * W, T, -1)
        seen_pt = x_ptc[..., -2:].amax(-1) > 0
        if month_bt is None:
            month_bt = torch.zeros(B, T, dtype=torch.long, device=s1.device)
        calendar_ptd = self.calendar(month_bt).repeat_interleave(H * W, dim=0)
        x_ptd = (self.embed(x_ptc) + calendar_ptd) * seen_pt[..., None]
        x_ptd = self.norm(x_ptd + self.mix(x_ptd.transpose(1, 2)).transpose(1, 2))
        keys_pta = self.keys(x_ptd).unflatten(-1, (_ATTENTION_HEADS, -1)).mul(self.queries).sum(-1)
        # Without any view all months count alike: their embeddings say that nothing is known.
        hidden_pt1 = ~(seen_pt | ~seen_pt.any(1, keepdim=True))[..., None]
        weights_pta = keys_pta.masked_fill(hidden_pt1, float("-inf")).softmax(dim=1)
        values_ptac = x_ptd.unflatten(-1, (_ATTENTION_HEADS, -1))
        pooled_pd = torch.einsum("pta,ptac->pac", weights_pta, values_ptac).flatten(1)
        features_pd: Tensor = self.last(pooled_pd)
        return features_pd.reshape(B, H, W, -1).permute(0, 3, 1, 2)
