"""Decoders: their shapes, parameters, loss, sharding and file format."""
