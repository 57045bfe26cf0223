"""Pictures in, batches out: data sets by name, mappers and loaders."""

from .augmentation import resize_longest
from .datasets import resolve_dataset
from .loaders import build_test_loader, build_train_loader
from .mapper import InferenceMapper, MultiViewMapper
from .pictures import PictureError, UnreadablePictureError, read_picture
from .unreadable import TooManyUnreadableError

__all__ = [
    "InferenceMapper",
    "MultiViewMapper",
    "PictureError",
    "TooManyUnreadableError",
    "UnreadablePictureError",
    "build_test_loader",
    "build_train_loader",
    "read_picture",
    "resize_longest",
    "resolve_dataset",
]
