"""Stages teacher and reference: pre-train the two models that score."""
