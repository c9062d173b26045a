"""Pictures and charts: arrays and records in, PNG bytes out."""
