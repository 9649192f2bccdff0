"""Tensors in, tensors out; never sees a model."""
