"""Crop maps at least a month before harvest, from partly annotated parcels and Sentinel time series."""

__version__ = "0.1.0"
