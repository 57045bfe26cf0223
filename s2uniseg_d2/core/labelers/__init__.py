"""Pseudo-mask makers: features in, masks of several granularities out."""
