"""Commands, paths and config keys that the documents name, read out of their Markdown."""

from __future__ import annotations

import ast
import functools
import itertools
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = ("configs", "datasets", "docs", "s2uniseg_d2", "tests", "tools")
_PATH = re.compile(rf"(?<![\w/.\-])(?:{'|'.join(ROOTS)})/[\w./\-*{{}},\[\]]*[\w*}}]")
_KEY = re.compile(r"\b(?:MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|EVALUATION)(?:\.[A-Z][A-Z0-9_]*)+\b")


class Command(NamedTuple):
    """One shell command: where it stands, the script or module it runs, and its words from there on."""

    where: str
    program: str
    words: tuple[str, ...]


def documents() -> list[Path]:
    """All pages for readers; the changelog is history."""
    fixed = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "datasets/README.md")]
    return [*fixed, *sorted((REPOSITORY / "docs").glob("*.md"))]


def read_commands(path: Path, text: str) -> Iterator[Command]:
    """Python, torchrun and make commands of fenced shell blocks, indented blocks and inline code."""
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"^    ((?:python|make|torchrun) .*)$", text, flags=re.MULTILINE)
    blocks += re.findall(r"`((?:python|torchrun|make) [^`]+)`", text)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        for command in _split(words):
            yield from _parse(path.relative_to(REPOSITORY).as_posix(), command)


def _split(words: list[str]) -> Iterator[list[str]]:
    for joined, part in itertools.groupby(words, key=lambda word: word in ("&&", "||", "|", ";")):
        if not joined:
            yield list(part)


def _parse(where: str, words: list[str]) -> Iterator[Command]:
    names = [Path(word).name for word in words]
    if "make" in names[:3]:
        start = names.index("make")
        yield Command(where, "make", tuple(words[start + 1 :]))
        return
    if "-m" in words and any(name.startswith("python") for name in names[: words.index("-m")]):
        start = words.index("-m") + 1
        yield Command(where, words[start], tuple(words[start + 1 :]))
        return
    runs = any(name.startswith(("python", "torchrun")) for name in names)
    scripts = [i for i, word in enumerate(words) if word.endswith(".py")]
    if runs and scripts:
        yield Command(where, words[scripts[0]], tuple(words[scripts[0] + 1 :]))


def flags_of(words: tuple[str, ...]) -> list[str]:
    """Long options among the words; `[--x Y]` marks one that may be left out, those after a script are the script's."""
    own = itertools.takewhile(lambda word: not word.endswith(".py"), words)
    cleaned = [word.strip("[]") for word in own]
    return [word.partition("=")[0] for word in cleaned if re.fullmatch(r"--[a-z][a-z\-0-9]*(=.*)?", word)]


def find_program(program: str) -> Path | None:
    """The file that a script's or a module's name means, if it is ours."""
    if program.endswith(".py"):
        path = REPOSITORY / program
        return path if path.is_file() else None
    below = REPOSITORY / Path(*program.split("."))
    return next((file for file in (below.with_suffix(".py"), below / "__main__.py") if file.is_file()), None)


@functools.cache
def known_flags(path: Path) -> frozenset[str]:
    """Every long option that a program's source gives to a parser, or one of our modules that it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = _options(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = find_program(node.module)
            # scripts of one folder import each other by their bare names
            beside = path.parent / f"{node.module}.py"
            for other in {module, beside if beside.is_file() else None} - {None, path}:
                found |= _options(ast.parse(other.read_text(encoding="utf-8")))
            if node.module == "detectron2.engine":
                found |= _detectron2_options()
    return frozenset(found | {"--help"})


def _options(tree: ast.AST) -> set[str]:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    constants = (argument for call in calls for argument in call.args if isinstance(argument, ast.Constant))
    return {str(constant.value) for constant in constants if str(constant.value).startswith("--")}


@functools.cache
def _detectron2_options() -> frozenset[str]:
    spec = find_spec("detectron2")
    assert spec is not None
    assert spec.origin is not None
    defaults = Path(spec.origin).parent / "engine" / "defaults.py"
    return frozenset(_options(ast.parse(defaults.read_text(encoding="utf-8"))))


def make_targets() -> set[str]:
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z\-]+):", text, flags=re.MULTILINE))


def missing_paths(text: str) -> list[str]:
    """Paths in the text, below a folder of the repository, that match no file; `{a,b}` and `*` are understood."""
    named = {match.rstrip(".,") for match in _PATH.findall(text)}
    return sorted(
        name for name in named for spelled in expand_braces(name) if not any(REPOSITORY.glob(spelled.rstrip("/")))
    )


def expand_braces(name: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", name)
    if match is None:
        return [name]
    return [
        spelled
        for choice in match[1].split(",")
        for spelled in expand_braces(name[: match.start()] + choice + name[match.end() :])
    ]


def config_keys(text: str) -> set[str]:
    return set(_KEY.findall(text))
