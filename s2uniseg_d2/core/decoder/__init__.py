"""The Mask2Former decoder with query groups."""
