"""Measurements; `python -m benchmarks.NAME` from the root of the checkout. See README.md."""
