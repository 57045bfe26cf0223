"""No config runs anything: not by YAML's tags, through its bases, overrides, or the one beside the weights."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from s2uniseg_d2.config import load_config, read_yaml
from s2uniseg_d2.engine.run import prepare
from s2uniseg_d2.labeling.maker import PseudoMaskMaker
from tests.exploits import touch

REPOSITORY = Path(__file__).resolve().parents[2]

TAGS = {
    "apply": "OUTPUT_DIR: !!python/object/apply:os.system ['{command}']",
    "apply_nested": "MODEL: {{VIT: {{NAME: !!python/object/apply:os.system ['{command}']}}}}",
    "apply_as_key": "!!python/object/apply:os.system ['{command}'] : 1",
    "apply_at_the_root": "!!python/object/apply:os.system ['{command}']",
    "new": "OUTPUT_DIR: !!python/object/new:subprocess.Popen [['sh', '-c', '{command}']]",
    "new_with_state": (
        "OUTPUT_DIR: !!python/object/new:type\n  args: ['z', !!python/tuple [], {{'extend': !!python/name:exec }}]\n"
        "  listitems: \"__import__('os').system('{command}')\""
    ),
    "name": "OUTPUT_DIR: !!python/name:os.system",
    "module": "OUTPUT_DIR: !!python/module:antigravity",
    "short_tag": "%TAG !p! tag:yaml.org,2002:python/\n---\nOUTPUT_DIR: !p!object/apply:os.system ['{command}']",
}


@pytest.fixture
def target(tmp_path):
    return tmp_path / "touched"


def write(path, kind, target):
    path.parent.mkdir(exist_ok=True)
    path.write_text(TAGS[kind].format(command=touch(target)))
    return path


@pytest.mark.parametrize("kind", TAGS)
def test_a_config_file_runs_nothing(tmp_path, target, kind):
    path = write(tmp_path / "c.yaml", kind, target)
    with pytest.raises(
        ValueError, match=r"c\.yaml cannot be read: could not determine a constructor for the tag.*python/"
    ):
        load_config(path)
    assert not target.exists()


@pytest.mark.parametrize("kind", ["apply", "new", "short_tag"])
def test_a_base_runs_nothing(tmp_path, target, kind):
    write(tmp_path / "below" / "base.yaml", kind, target)
    (tmp_path / "middle.yaml").write_text("_BASE_: below/base.yaml\n")
    (tmp_path / "c.yaml").write_text("_BASE_: middle.yaml\nSEED: 1\n")
    with pytest.raises(ValueError, match=r"base\.yaml cannot be read: could not determine a constructor"):
        load_config(tmp_path / "c.yaml")
    assert not target.exists()


@pytest.mark.parametrize("kind", ["apply", "new", "short_tag"])
def test_the_config_beside_the_weights_runs_nothing(tmp_path, target, kind):
    path = write(tmp_path / "run" / "config.yaml", kind, target)
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read: could not determine a constructor"):
        load_config("", model_from=path)
    # as an evaluation finds it by itself
    torch.save({}, tmp_path / "run" / "w.pth")
    words = ["MODEL.WEIGHTS", str(tmp_path / "run" / "w.pth"), "DATASETS.TEST", "('folder:x',)"]
    args = argparse.Namespace(config_file="", opts=words, eval_only=True, resume=False, num_gpus=1, num_machines=1)
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read: could not determine a constructor"):
        prepare(args)
    assert not target.exists()


@pytest.mark.parametrize("kind", ["apply", "new"])
def test_the_label_commands_config_runs_nothing(tmp_path, target, kind):
    with pytest.raises(ValueError, match="could not determine a constructor"):
        PseudoMaskMaker.from_pretrained("", write(tmp_path / "c.yaml", kind, target))
    assert not target.exists()


def test_the_exploits_are_real(tmp_path, target):
    # in a process of its own, read as Detectron2 reads its configs
    code = "import sys, yaml; yaml.unsafe_load(open(sys.argv[1]))"
    for kind in ("apply", "apply_nested", "apply_at_the_root", "short_tag"):
        path = write(tmp_path / f"{kind}.yaml", kind, target)
        subprocess.run([sys.executable, "-c", code, path], capture_output=True, timeout=60)
        assert target.exists(), kind
        target.unlink()


@pytest.mark.parametrize(
    "value",
    [
        "__import__('os').system('{command}')",
        "!!python/object/apply:os.system ['{command}']",
        "(lambda: __import__('os').system('{command}'))()",
        "[x for x in [__import__('os').system('{command}')]]",
        "f\"{{__import__('os').system('{command}')}}\"",
    ],
)
def test_overrides_are_values_and_nothing_else(target, value):
    text = value.format(command=touch(target))
    assert text == load_config("", ["OUTPUT_DIR", text]).OUTPUT_DIR
    with pytest.raises(ValueError, match="overrides: "):
        load_config("", ["SEED", text])
    assert not target.exists()


@pytest.mark.parametrize("value", ["{[1]}", "(" * 5000, "[" * 300 + "]" * 300, "-" * 20000 + "1", "'\x00'"])
def test_values_that_python_cannot_make_are_refused(value):
    with pytest.raises(ValueError, match="overrides: "):
        load_config("", ["SEED", value])


def test_python_configs_are_refused(tmp_path, target):
    (tmp_path / "lazy.py").write_text(f"import os\nos.system({touch(target)!r})\n")
    with pytest.raises(ValueError, match=r"lazy\.py must be YAML, got Python, which would be run"):
        load_config(tmp_path / "lazy.py")
    (tmp_path / "c.yaml").write_text("_BASE_: lazy.py\n")
    with pytest.raises(ValueError, match=r"lazy\.py must be YAML"):
        load_config(tmp_path / "c.yaml")
    done = subprocess.run(
        [sys.executable, "train_net.py", "--config-file", tmp_path / "lazy.py"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.search(r"train_net.py: config file .*lazy\.py must be YAML", done.stderr)
    assert not target.exists()


def test_a_saved_config_is_plain_and_comes_back(tmp_path):
    cfg = load_config("", ["OUTPUT_DIR", "!!python/object/apply:os.system ['true']"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert yaml.safe_load(cfg.dump())["OUTPUT_DIR"] == cfg.OUTPUT_DIR
    assert load_config(tmp_path / "config.yaml").OUTPUT_DIR == cfg.OUTPUT_DIR


def test_a_few_lines_do_not_make_billions(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "laughs.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"laughs\.yaml must hold at most 100000 values, written out, got \d{9}"):
        read_yaml(tmp_path / "laughs.yaml")
    for text in ("a: &a [*a]", "a: &a {b: *a}", "a: " + "[" * 3000 + "]" * 3000):
        (tmp_path / "endless.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"endless\.yaml cannot be read"):
            read_yaml(tmp_path / "endless.yaml")


@pytest.mark.parametrize("key", ["INPUT.VIEWS.SCALE", "INPUT.VIEWS.NUM", "TEST.TASKS", "SOLVER.BASE_LR_END"])
def test_none_is_no_number(key):
    with pytest.raises(ValueError, match=f"{key} must"):
        load_config("", [key, "None"])


@pytest.mark.parametrize(
    "text", ["ON: {A: 2020-01-01}", "1: {2: !!set {a}}", "MODEL: {NO: {X: 2020-01-01}}", "A: !!binary aGk="]
)
def test_keys_and_values_that_no_config_has_are_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    for words in ({}, {"model_from": tmp_path / "c.yaml"}):
        with pytest.raises(ValueError, match=r"config file .*c\.yaml: "):
            load_config(tmp_path / "c.yaml", **words)
