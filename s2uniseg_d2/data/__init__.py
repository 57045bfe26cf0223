"""Pictures in, batches out: data sets by name, mappers and loaders."""

from .augmentation import resize_longest
from .benchmarks import BENCHMARKS, register_benchmarks
from .datasets import resolve_dataset
from .loaders import build_test_loader, build_train_loader
from .mapper import InferenceMapper, MultiViewMapper
from .pictures import PictureError, UnreadablePictureError, read_picture
from .unreadable import TooManyUnreadableError

__all__ = [
    "BENCHMARKS",
    "InferenceMapper",
    "MultiViewMapper",
    "PictureError",
    "TooManyUnreadableError",
    "UnreadablePictureError",
    "build_test_loader",
    "build_train_loader",
    "read_picture",
    "register_benchmarks",
    "resize_longest",
    "resolve_dataset",
]

register_benchmarks(replace=False)
