"""Evaluators built from Detectron2's: class-agnostic, and class-aware after mapping pseudo-classes to classes."""

from __future__ import annotations

from .build import TASKS, available_tasks, build_evaluator
from .class_mapping import ClassMapping, fit_mappings, identity_mapping, load_mappings, save_mappings
from .instances import AgnosticCOCOEvaluator, MappedCOCOEvaluator
from .panoptic import MappedPanopticEvaluator
from .panoptic_pictures import PanopticMapping, load_panoptic_mappings
from .quality import PanopticStats, panoptic_quality
from .semantic import MappedSemSegEvaluator, SemanticQuality, semantic_quality
from .table import format_results

__all__ = [
    "TASKS",
    "AgnosticCOCOEvaluator",
    "ClassMapping",
    "MappedCOCOEvaluator",
    "MappedPanopticEvaluator",
    "MappedSemSegEvaluator",
    "PanopticMapping",
    "PanopticStats",
    "SemanticQuality",
    "available_tasks",
    "build_evaluator",
    "fit_mappings",
    "format_results",
    "identity_mapping",
    "load_mappings",
    "load_panoptic_mappings",
    "panoptic_quality",
    "save_mappings",
    "semantic_quality",
]
