"""The built-in simulated landscape: fields, what grows on them, and what the satellites see of it."""
