"""Turning a language model into sounds: engines, windows, streaming."""
