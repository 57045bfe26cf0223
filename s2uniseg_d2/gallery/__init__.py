"""Segmented pictures for a person to look at, and for other programs to read: what the demo writes."""
