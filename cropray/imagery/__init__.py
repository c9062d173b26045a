"""Imagery: sources of scenes and the reducers that make composites of them."""
