"""Sections of `benchmarks/gpu_report.py`, one file a kind of measurement."""
