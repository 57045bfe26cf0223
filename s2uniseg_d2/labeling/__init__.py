"""Pseudo-masks for any pile of pictures: a Python call for one, a resumable run for many."""
