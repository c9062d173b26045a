"""Parcels to boxes: neighbours are clustered, and every cluster gets a box of a least size. Pure."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import DBSCAN

from cropray.types import DoubleArray, IndexArray


def cluster(centroids: DoubleArray, eps_m: float, min_samples: int) -> IndexArray:
    """Cluster number of each of (N, 2) points by DBSCAN (Ester et al. 1996); -1 for points of none."""
    labels: IndexArray = DBSCAN(eps=eps_m, min_samples=min_samples).fit_predict(centroids)
    return labels


def cluster_bounds(bounds: DoubleArray, labels: IndexArray) -> DoubleArray:
    """(K, 4) min x, min y, max x, max y of each cluster over (N, 4) bounds of its members."""
    members = labels >= 0
    lower = np.full((labels.max(initial=-1) + 1, 2), np.inf)
    upper = -lower
    np.minimum.at(lower, labels[members], bounds[members, :2])
    np.maximum.at(upper, labels[members], bounds[members, 2:])
    return np.hstack([lower, upper])


def padded(bounds: DoubleArray, min_size_m: float) -> DoubleArray:
    """(K, 4) bounds, each side widened evenly on both ends to `min_size_m` at least."""
    lower, upper = bounds[:, :2], bounds[:, 2:]
    missing = np.maximum(min_size_m - (upper - lower), 0) / 2
    return np.hstack([lower - missing, upper + missing])
