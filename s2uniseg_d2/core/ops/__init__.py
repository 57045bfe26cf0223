"""Tensor operations that several parts share."""
