"""The config words of these tests: a tiny encoder, small pictures, two layers."""

from __future__ import annotations

from tests.tiny import tiny_words

WORDS = tiny_words(MODEL__UNIAP__TAUS="(0.7, 0.5)", INPUT__GLOBAL_LONGEST_PX=64, MODEL__UNIAP__MIN_TOKENS=2)
