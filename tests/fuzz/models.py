"""Targets: configs, weights, feature maps, boxes and crops."""

from __future__ import annotations

import functools
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from s2uniseg_d2.config import known_keys, load_config
from s2uniseg_d2.core.labelers.region_embedding import embed_regions
from s2uniseg_d2.core.labelers.uniap import UniAP, UniAPConfig
from s2uniseg_d2.core.ops.masks import crop_masks
from s2uniseg_d2.core.restricted_pickle import parse_plain_pickle
from s2uniseg_d2.core.trunks.vit import TimmViT
from s2uniseg_d2.core.trunks.weights import load_trunk_weights
from s2uniseg_d2.data.mapper import MultiViewMapper
from s2uniseg_d2.engine.checkpoint import SafeCheckpointer
from tests.exploits import PICKLES, WEIGHT_FILES, repack
from tests.fuzz.harness import Target
from tests.fuzz.mutations import JUNK, mutated_bytes, mutated_tree


@functools.cache
def sound_config() -> dict:
    return yaml.safe_load(load_config("").dump())


OURS = ("INPUT", "MODEL", "SOLVER", "TEST", "EVALUATION", "DATASETS", "SEED", "VIS_PERIOD", "OUTPUT_DIR")


@st.composite
def config_texts(draw: st.DrawFn) -> bytes:
    """A config with a few changed values, sometimes with changed bytes too, or YAML of any kind."""
    tree = sound_config()
    part = {key: tree[key] for key in draw(st.sets(st.sampled_from(OURS), min_size=1, max_size=2))}
    part = draw(mutated_tree(st.just(part)))
    try:
        text = yaml.safe_dump(part, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError, TypeError):
        text = repr(part).encode("utf-8", "surrogatepass")
    return draw(mutated_bytes(st.just(text))) if draw(st.integers(0, 3)) == 0 else text


def run_config(case: bytes, folder: Path) -> object:
    (folder / "c.yaml").write_bytes(case)
    return load_config(folder / "c.yaml", model_from=folder / "c.yaml")


@functools.cache
def keys() -> tuple[str, ...]:
    return tuple(known_keys(load_config("")))


VALUES = st.one_of(
    JUNK.map(repr),
    st.sampled_from(
        ["1", "-1", "0", "1e400", "nan", "None", "('a', 1)", "()", "[]", "(1, 2)", "(0.5, nan)", "'", "{[1]}", "{1: 2}",
         "(" * 300, "1 if 1 else 2", "__import__('os')", "\0", "b'x'", "...", "1j", "0x10", "9" * 5000, "True", "''"]
    ),
    st.text(max_size=10),
)  # fmt: skip


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    names = (
        st.sampled_from(keys())
        | st.text(max_size=8)
        | st.sampled_from(["MODEL", "MODEL.VIT", "", ".", "MODEL..VIT", "SEED.X"])
    )
    pairs = draw(st.lists(st.tuples(names, VALUES), min_size=1, max_size=3))
    words = [word for pair in pairs for word in pair]
    return words[: len(words) - draw(st.sampled_from([0, 0, 0, 1]))]


def run_overrides(case: list[str], folder: Path) -> object:
    return load_config("", case)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


ONES = torch.ones(4, 3)
TENSORS = st.sampled_from(
    [
        *(ONES, ONES * float("nan"), torch.zeros(4), torch.zeros(()), torch.zeros(0), ONES.half(), ONES.long()),
        *(ONES * 1j, ONES.to_sparse(), ONES.bool(), torch.zeros(1).expand(4, 3), torch.empty(4, 3, device="meta")),
    ]
)


def to_array(value: object) -> object:
    is_dense = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
    return np.asarray(value) if is_dense else value


@st.composite
def weight_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A checkpoint with values exchanged or removed, in one of the formats, sometimes with changed bytes."""
    state = model().state_dict()
    names = [*state, "extra", "module.0.weight"]
    for name in draw(st.lists(st.sampled_from(names), max_size=3)):
        if draw(st.booleans()):
            state[name] = draw(TENSORS | JUNK)
        else:
            state.pop(name, None)
    optimizer = torch.optim.SGD(model().parameters(), 0.1).state_dict()
    content = draw(
        st.sampled_from([state, {"model": state}, {"model": state, "optimizer": optimizer}, {"state_dict": state}])
    )
    if "optimizer" in content and draw(st.booleans()):
        content["optimizer"] = draw(mutated_tree(st.just(optimizer)))
    kind = draw(st.sampled_from(["zip", "zip", "old", "pkl", "exploit"]))
    if kind == "exploit":
        target = Path("never-made")
        make = {**PICKLES, **WEIGHT_FILES, "numpy.load": PICKLES["os.system"]}
        return draw(st.sampled_from([".pth", ".pkl"])), make[draw(st.sampled_from(sorted(make)))](target)
    out = io.BytesIO()
    if kind == "pkl":
        arrays = {name: to_array(value) for name, value in state.items()}
        pickle.dump({"model": arrays, "__author__": "x"}, out, protocol=draw(st.integers(0, 5)))
    else:
        torch.save(content, out, _use_new_zipfile_serialization=kind == "zip")
    data = out.getvalue()
    if kind == "zip" and draw(st.integers(0, 3)) == 0:
        # inside of a sound zip file, past its sums
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inner = archive.read("archive/data.pkl")
        return ".pth", repack(data, draw(mutated_bytes(st.just(inner))))
    changed = draw(st.booleans())
    return ".pkl" if kind == "pkl" else ".pth", draw(mutated_bytes(st.just(data))) if changed else data


def run_weights(case: tuple[str, bytes], folder: Path) -> object:
    path = folder / f"w{case[0]}"
    path.write_bytes(case[1])
    into = model()
    optimizer = torch.optim.SGD(into.parameters(), 0.1)
    SafeCheckpointer(into, optimizer=optimizer).load(str(path))
    return None if Path("never-made").exists() else into


@functools.cache
def vit() -> TimmViT:
    return TimmViT("vit_tiny_patch16_224", patch_size=8, embed_dim=8, depth=1, num_heads=2, img_size=16)


@functools.cache
def vit_bytes() -> bytes:
    out = io.BytesIO()
    torch.save({"teacher": vit().state_dict()}, out)
    return out.getvalue()


@st.composite
def trunk_files(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 2)) == 0:
        return draw(mutated_bytes(st.just(vit_bytes())))
    state = dict(vit().state_dict())
    for name in draw(st.lists(st.sampled_from(sorted(state)), max_size=3)):
        state[name] = draw(TENSORS | JUNK)
    if draw(st.booleans()):
        state["pos_embed"] = torch.zeros(draw(st.lists(st.integers(0, 12), max_size=4)))
    prefix = draw(st.sampled_from(["", "module.", "backbone.", "x"]))
    content = {prefix + name: value for name, value in state.items()}
    out = io.BytesIO()
    torch.save(
        draw(st.sampled_from([content, {"teacher": content}, {"student": content, "teacher": {}}, [content]])), out
    )
    return out.getvalue()


def run_trunk(case: bytes, folder: Path) -> object:
    (folder / "w.pth").write_bytes(case)
    return load_trunk_weights(vit(), folder / "w.pth")


def run_pickle(case: bytes, folder: Path) -> object:
    return parse_plain_pickle(case, "a pickle of the test")


@st.composite
def pickles(draw: st.DrawFn) -> bytes:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": [np.float32(1), (b"x", {1})], "c": np.array(["x"])}
    sound = st.integers(0, 5).map(lambda protocol: pickle.dumps(arrays, protocol))
    foreign = st.sampled_from(
        [PICKLES[name](Path("never-made")) for name in ("posix.system", "os.system", "builtins.eval")]
    )
    return draw(mutated_bytes(st.one_of(sound, sound, foreign)))


NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e30, 3e38, 1e-45, float("nan"), float("inf"), float("-inf")])


@st.composite
def feature_maps(draw: st.DrawFn) -> tuple[torch.Tensor, list | None]:
    shape = draw(st.lists(st.integers(1, 6), min_size=4, max_size=4) | st.lists(st.integers(0, 3), max_size=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    features = torch.randn(shape, generator=generator)
    for _ in range(draw(st.integers(0, 2)) if features.numel() else 0):
        features.view(-1)[draw(st.integers(0, features.numel() - 1))] = draw(NUMBERS)
    if draw(st.integers(0, 4)) == 0:
        features = features * draw(NUMBERS)
    features = features.to(
        draw(st.sampled_from([torch.float32, torch.float32, torch.float16, torch.float64, torch.int64]))
    )
    sizes = draw(st.none() | st.lists(st.tuples(st.integers(-1, 7), st.integers(-1, 7)), max_size=3))
    return features, sizes


def run_uniap(case: tuple, folder: Path) -> object:
    features, sizes = case
    labels = UniAP(UniAPConfig(min_tokens=1))(features, sizes)
    assert len(labels) == len(features)
    for picture, tokens in zip(labels, features, strict=True):
        for kind in picture:
            assert kind.masks.shape[1:] == tokens.shape[1:]
            assert torch.isfinite(kind.embeddings).all()
            assert kind.masks.flatten(1).any(1).all()
    return labels


@st.composite
def regions(draw: st.DrawFn) -> tuple:
    features, _ = draw(feature_maps())
    features = features[0] if features.dim() and len(features) else features
    grid = draw(st.just(tuple(features.shape[1:])) | st.tuples(st.integers(0, 3), st.integers(0, 3)))
    count = draw(st.integers(0, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    masks = torch.rand((count, *grid), generator=generator)
    return (
        features,
        masks > 0.5 if draw(st.booleans()) else masks,
        draw(NUMBERS | st.just(0.07)),
        draw(st.sampled_from(["mean", "sum", ""])),
    )


def run_regions(case: tuple, folder: Path) -> object:
    vectors = embed_regions(*case)
    assert torch.isfinite(vectors).all()
    return vectors


SIDES = st.floats(0, 20) | st.floats(-20, 60) | NUMBERS


def run_crop(case: tuple, folder: Path) -> object:
    box, shape, size, flip, kind = case
    masks = torch.ones(shape).to(kind)
    found = crop_masks(masks, torch.tensor(box), flip, size)
    assert found.shape == (len(masks), *size)
    return found


CROP_PARTS = (
    st.lists(SIDES, min_size=4, max_size=4) | st.lists(SIDES, max_size=5),
    st.lists(st.integers(4, 9), min_size=3, max_size=3) | st.lists(st.integers(0, 3), max_size=4),
    st.tuples(st.integers(0, 8), st.integers(1, 8)),
    st.booleans(),
    st.sampled_from([torch.bool, torch.float32]),
)


@st.composite
def crops(draw: st.DrawFn) -> tuple:
    """A box that lies in a grid, or one with a part of it at random."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    left, top = draw(st.floats(0, 0.75)) * columns, draw(st.floats(0, 0.75)) * rows
    right, bottom = left + draw(st.floats(0.05, 0.25)) * columns, top + draw(st.floats(0.05, 0.25)) * rows
    size = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    case = [[left, top, right, bottom], [draw(st.integers(0, 4)), rows, columns], size, draw(st.booleans()), torch.bool]
    spoilt = draw(st.sampled_from([0, None, 1, 0, None, 2, 1, 4]))
    if spoilt is not None:
        case[spoilt] = draw(CROP_PARTS[spoilt])
    return tuple(case)


def run_views(case: dict, folder: Path) -> object:
    arguments, (height, width) = dict(case["arguments"]), case["size"]
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(folder / "a.png")
    item = MultiViewMapper(**arguments)({"file_name": str(folder / "a.png")})
    boxes, (rows, columns) = item["boxes"], item["image"].shape[1:]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= columns + 1e-3).all()
    assert (boxes[:, 3] <= rows + 1e-3).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    return item


PAIRS = st.tuples(*[st.sampled_from([0.05, 0.4, 1.0, 2.0, 100.0, 1e-9]) | NUMBERS] * 2)
VIEWS = st.fixed_dictionaries(
    {
        "size": st.tuples(st.integers(1, 40), st.integers(1, 40)) | st.sampled_from([(1, 1), (1, 2000), (2000, 1)]),
        "arguments": st.fixed_dictionaries(
            {},
            optional={
                "view_scale": PAIRS,
                "view_ratio": PAIRS,
                "view_px": st.sampled_from([32, 64, 0, -32, 33]),
                "global_longest_px": st.integers(-1, 64),
                "num_views": st.integers(-1, 3),
                "flip_prob": st.floats(-0.5, 1.5) | NUMBERS,
                "seed": st.integers(-2, 2**40),
            },
        ),
    }
)

TARGETS = [
    Target("config files", config_texts(), run_config, 60),
    Target("overrides", st.deferred(overrides), run_overrides, 60),
    Target("checkpoints", weight_files(), run_weights, 120),
    Target("ViT weights", trunk_files(), run_trunk, 60),
    Target("pickles", pickles(), run_pickle, 90),
    Target("feature maps", feature_maps(), run_uniap, 60),
    Target("masks to embed", regions(), run_regions, 40),
    Target("boxes", crops(), run_crop, 60),
    Target("views", VIEWS, run_views, 40),
]
