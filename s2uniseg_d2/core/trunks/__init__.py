"""Encoders: any timm ViT and the ViT-Adapter around it."""
