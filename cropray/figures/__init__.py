"""Pictures and charts as PNG: arrays and records in, bytes out. No files, no rasters, no Ray."""
