"""Pipelines: zero-shot classification and captioning."""
