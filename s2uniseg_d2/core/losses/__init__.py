"""Matching and the losses of masks, objectness and queries."""
