"""What the documents name exists: files, modules, options of commands, make targets, config keys."""

from __future__ import annotations

import re

import pytest

from s2uniseg_d2.config import load_config
from s2uniseg_d2.engine.transfer import add_transfer_config

from .commands import (
    REPOSITORY,
    Command,
    config_keys,
    documents,
    expand_braces,
    find_program,
    flags_of,
    known_flags,
    make_targets,
    missing_paths,
    read_commands,
)

FOREIGN = ("pip", "pytest", "venv", "sphinx")


def complaints(command: Command) -> list[str]:
    """What is wrong with a command, in words; an empty list if nothing is."""
    if command.program == "make":
        targets = [word for word in command.words if "=" not in word and not word.startswith("-")]
        return [f"{command.where}: no target {word!r}" for word in targets if word not in make_targets()]
    if command.program in FOREIGN:
        return []
    path = find_program(command.program)
    if path is None:
        return [f"{command.where}: {command.program} does not exist"]
    unknown = [flag for flag in flags_of(command.words) if flag not in known_flags(path)]
    return [f"{command.where}: {command.program} has no {flag}" for flag in unknown]


def parse(line: str) -> list[Command]:
    return list(read_commands(REPOSITORY / "README.md", f"```bash\n{line}\n```\n"))


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(REPOSITORY).as_posix())
class TestDocuments:
    def test_commands_run_what_exists_with_options_that_it_has(self, path):
        found = [complaint for command in read_commands(path, path.read_text()) for complaint in complaints(command)]
        assert not found

    def test_paths_exist(self, path):
        assert not missing_paths(path.read_text())


def test_config_keys_exist():
    cfg = load_config("")
    add_transfer_config(cfg)
    named = {key: path.name for path in documents() for key in config_keys(path.read_text())}
    assert len(named) > 40
    missing = {}
    for key, where in named.items():
        node = cfg
        for part in key.split("."):
            if part not in node:
                missing[key] = where
                break
            node = node[part]
    assert not missing


def test_the_map_from_paper_to_code_names_what_is_there():
    text = (REPOSITORY / "docs/paper-to-code.md").read_text()
    named = re.findall(r"`((?:core|data|engine|evaluation|labeling|modeling)/[\w/]*(?:\.py)?)`", text)
    assert len(named) > 20
    assert [name for name in named if not (REPOSITORY / "s2uniseg_d2" / name).exists()] == []


class TestReading:
    """The reader of commands would not see a mistake if it saw no command."""

    def test_finds_the_commands_of_the_documents(self):
        commands = [command for path in documents() for command in read_commands(path, path.read_text())]
        programs = {command.program for command in commands}
        assert len(commands) > 40
        assert {"make", "train_net.py", "s2uniseg_d2.pseudo_masks", "tools/training_cost.py"} <= programs

    @pytest.mark.parametrize(
        ("line", "complaint"),
        [
            ("python train_net.py --config-fil x", "train_net.py has no --config-fil"),
            ("python -m s2uniseg_d2.pseudo_masks --inputs x", "s2uniseg_d2.pseudo_masks has no --inputs"),
            ("A=1 torchrun --nnodes 2 train_net.py --nope", "train_net.py has no --nope"),
            ("python tools/no_such.py", "tools/no_such.py does not exist"),
            ("make prettier", "no target 'prettier'"),
            (
                "python datasets/make_scenes.py \\\n --output x && python train_net.py --what",
                "train_net.py has no --what",
            ),
        ],
    )
    def test_complains(self, line, complaint):
        found = [text for command in parse(line) for text in complaints(command)]
        assert found == [f"README.md: {complaint}"]

    @pytest.mark.parametrize(
        "line",
        [
            "python train_net.py --config-file x --num-gpus 8 --eval-only MODEL.WEIGHTS y",
            "srun torchrun --nnodes 2 train_net.py --resume",
            "make DEVICE=cuda evidence",
            "python -m s2uniseg_d2.transfer OTHER/train.py --theirs",
            "pip install -e .",
        ],
    )
    def test_accepts(self, line):
        assert [text for command in parse(line) for text in complaints(command)] == []

    def test_braces_stand_for_every_choice(self):
        assert expand_braces("a{1,2}_{x,y}") == ["a1_x", "a1_y", "a2_x", "a2_y"]
        assert missing_paths("`configs/s2uniseg_sa1b_{0p4m,9m}.yaml`") == ["configs/s2uniseg_sa1b_{0p4m,9m}.yaml"]

    def test_missing_paths_are_found(self):
        assert missing_paths("see tests/core/test_nothing.py, and `configs/tiny.yaml`.") == [
            "tests/core/test_nothing.py"
        ]
        pages = ["docs/compatibility_of_old.md", "docs/pictures/nothing.png"]
        assert missing_paths(" and ".join(pages)) == pages
