"""The rules of the architecture, held against every file of the checkout."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = "s2uniseg_d2"
FOREIGN_TO_CORE = ("detectron2", "fvcore", "iopath", "yacs")
ADAPTERS = (
    "data",
    "demo",
    "downloads",
    "engine",
    "evaluation",
    "gallery",
    "labeling",
    "modeling",
    "own_pictures",
    "pseudo_masks",
    "segmenter",
)
CORE_PARTS = ("decoder", "labelers", "losses", "trunks")
MOST_LINES = 400

COMMAND = ("labeling", "pseudo_masks")  # the labelling command and its parts stand above what trains and evaluates
DEMO = ("segmenter", "gallery", "demo")  # each above the one before, and all above the parts of the labelling command

# who -> what it must not reach, not even through other modules of the package
FORBIDDEN = {
    "core": ADAPTERS,
    "modeling": ("data", "engine", "evaluation", *COMMAND, *DEMO),
    "evaluation": ("engine", "modeling", *COMMAND, *DEMO),
    "data": ("engine", "evaluation", "modeling", *COMMAND, *DEMO),
    "engine": (*COMMAND, *DEMO),
    "labeling": (*COMMAND[1:], *DEMO),
    "segmenter": (*COMMAND[1:], *DEMO[1:]),
    "gallery": (*COMMAND[1:], *DEMO[2:]),
} | {f"core.{part}": tuple(f"core.{other}" for other in CORE_PARTS if other != part) for part in CORE_PARTS}


# --- what there is -------------------------------------------------------------------------------------------------


def python_files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(REPOSITORY).parts)]


def package_modules() -> dict[str, Path]:
    """Dotted name of every module of the package, a package itself under its own name."""
    modules = {}
    for path in python_files(PACKAGE):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def shown(path: Path, node: ast.AST | None = None) -> str:
    where = path.relative_to(REPOSITORY)
    return f"{where}:{node.lineno}" if node is not None else str(where)


# --- imports -------------------------------------------------------------------------------------------------------


def imported_names(tree: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    """Absolute names of all imports, wherever they stand; ``from a import b`` gives both ``a`` and ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*above, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.args[0].value


def import_graph(trees: dict[str, tuple[ast.Module, bool]]) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports. Python also runs the parents of each, so they count too."""
    graph = {}
    for module, (tree, is_package) in trees.items():
        targets = set()
        for name in imported_names(tree, module, is_package):
            parts = name.split(".")
            targets |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)} & trees.keys()
        graph[module] = targets - {module}
    return graph


def belongs(module: str, part: str) -> bool:
    return f"{module}.".startswith(f"{PACKAGE}.{part}.")


def broken_rules(graph: dict[str, set[str]], source: str, targets: tuple[str, ...]) -> list[str]:
    """Shortest import chains from a module of ``source`` into one of ``targets``."""
    chains = []
    for start in sorted(module for module in graph if belongs(module, source)):
        queue, seen = [[start]], {start}
        while queue:
            chain = queue.pop(0)
            if any(belongs(chain[-1], target) for target in targets):
                chains.append(" -> ".join(chain))
                break
            fresh = sorted(graph.get(chain[-1], set()) - seen)
            seen.update(fresh)
            queue += [[*chain, module] for module in fresh]
    return chains


@pytest.mark.parametrize("source", sorted(FORBIDDEN))
def test_imports_point_one_way(source: str) -> None:
    modules = package_modules()
    graph = import_graph({name: (parse(path), path.name == "__init__.py") for name, path in modules.items()})
    assert broken_rules(graph, source, FORBIDDEN[source]) == []


def test_core_imports_nothing_of_detectron2_or_of_the_package_above_it() -> None:
    wrong = []
    for module, path in package_modules().items():
        if not belongs(module, "core"):
            continue
        for name in imported_names(parse(path), module, path.name == "__init__.py"):
            foreign = name.split(".")[0] in FOREIGN_TO_CORE
            above = name.split(".")[0] == PACKAGE and not belongs(name, "core") and name != PACKAGE
            if foreign or above:
                wrong.append(f"{shown(path)} imports {name}")
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "line", "target"),
    [
        ("core.losses.matching", "from s2uniseg_d2.core.decoder import attention", "core.decoder.attention"),
        ("core.losses.matching", "from ..decoder.attention import Attention", "core.decoder.attention"),
        ("modeling", "from .. import engine", "engine"),
        ("modeling.head", "def late():\n    import s2uniseg_d2.engine.hooks", "engine.hooks"),
        ("data.mapper", "from s2uniseg_d2.bridge import anything", "evaluation"),
        ("engine.run", "from ..labeling import maker", "labeling.maker"),
        ("labeling.maker", "from s2uniseg_d2.pseudo_masks import main", "pseudo_masks"),
        ("labeling.maker", "from s2uniseg_d2.gallery import page", "gallery"),
        ("gallery.page", "from s2uniseg_d2.demo import main", "demo"),
        ("evaluation.build", "import importlib\nimportlib.import_module('s2uniseg_d2.modeling')", "modeling"),
    ],
)
def test_the_import_rule_sees_every_way_to_break_it(module: str, line: str, target: str) -> None:
    names = ("", "core", "core.decoder", "core.losses", "core.decoder.attention", "core.losses.matching", "bridge")
    names += ("modeling", "modeling.head", "data", "data.mapper", "evaluation", "evaluation.build")
    names += ("engine", "engine.hooks", "engine.run", "labeling", "labeling.maker", "pseudo_masks")
    names += ("segmenter", "gallery", "gallery.page", "demo")
    packages = {name for name in names if any(other.startswith(f"{name}.") for other in names)} | {""}
    sources = dict.fromkeys(names, "") | {"bridge": "import s2uniseg_d2.evaluation", module: line}
    trees = {
        ".".join(filter(None, (PACKAGE, name))): (ast.parse(text), name in packages) for name, text in sources.items()
    }
    source = module.rsplit(".", 1)[0] if module.startswith("core") else module.split(".")[0]
    chains = broken_rules(import_graph(trees), source, FORBIDDEN[source])
    assert any(chain.split(" -> ")[-1].startswith(f"{PACKAGE}.{target.rsplit('.', 1)[0]}") for chain in chains)


BLOCKED_IMPORT = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {foreign!r}:
            raise ImportError(f"the core asked for {{name}}")

sys.meta_path.insert(0, Refuse())
for name in {modules!r}:
    importlib.import_module(name)
above = sorted(name for name in sys.modules if name.startswith({adapters!r}))
assert not above, above
"""


def run_blocked(modules: list[str]) -> subprocess.CompletedProcess[str]:
    adapters = tuple(f"{PACKAGE}.{adapter}" for adapter in ADAPTERS)
    code = BLOCKED_IMPORT.format(foreign=set(FOREIGN_TO_CORE), modules=modules, adapters=adapters)
    return subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_core_can_be_imported_without_detectron2() -> None:
    modules = [name for name in package_modules() if belongs(name, "core")]
    assert len(modules) > 5
    done = run_blocked(modules)
    assert done.returncode == 0, done.stderr


def test_the_block_on_detectron2_holds() -> None:
    done = run_blocked(["fvcore.nn"])
    assert done.returncode != 0
    assert "the core asked for fvcore" in done.stderr


# --- calls and handlers --------------------------------------------------------------------------------------------


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str, str]]:
    """Every call with the name called and what stands before its last dot, if that is a plain name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node, node.func.id, ""
            elif isinstance(node.func, ast.Attribute):
                owner = node.func.value
                yield node, node.func.attr, owner.id if isinstance(owner, ast.Name) else "?"


def keyword(call: ast.Call, name: str) -> object:
    """The constant passed as a keyword; None when there is none, or when it is an expression."""
    values = [word.value for word in call.keywords if word.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def is_command(tree: ast.Module) -> bool:
    """Whether the file is a command-line tool: it has the usual last lines of one."""
    last = tree.body[-1] if tree.body else None
    return isinstance(last, ast.If) and "__main__" in ast.dump(last.test)


def prints(tree: ast.Module) -> Iterator[ast.AST]:
    return (call for call, name, owner in calls(tree) if name == "print" and not owner)


def moves_to_cuda(tree: ast.Module) -> Iterator[ast.AST]:
    """``x.cuda()``, and a CUDA device spelled out for ``to`` or ``device``."""
    literal = re.compile(r"cuda(:\d+)?")
    for call, name, owner in calls(tree):
        values = [word.value for word in call.keywords if word.arg == "device"]
        values += call.args[:1] if owner and name in {"to", "device"} else []
        spelled = (v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str))
        if (name == "cuda" and owner) or any(literal.fullmatch(value) for value in spelled):
            yield call


def blanket_handlers(tree: ast.Module) -> Iterator[ast.AST]:
    """``except:`` and ``except Exception``, unless the handler ends by raising again."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = any(kind is None or getattr(kind, "id", "") in {"Exception", "BaseException"} for kind in kinds)
            if broad and not isinstance(node.body[-1], ast.Raise):
                yield node


def unsafe_loads(tree: ast.Module) -> Iterator[ast.AST]:
    """Loading that can run code: ``torch.load`` without ``weights_only=True``, and YAML beyond the safe loader."""
    yaml_calls = {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"}
    for call, name, owner in calls(tree):
        pickled = (owner, name) == ("torch", "load") and keyword(call, "weights_only") is not True
        switched = keyword(call, "weights_only") is False or keyword(call, "allow_unsafe") is True
        if pickled or switched or (owner == "yaml" and name in yaml_calls):
            yield call


def evaluations(tree: ast.Module) -> Iterator[ast.AST]:
    return (call for call, name, owner in calls(tree) if name in {"eval", "exec"} and owner in {"", "builtins"})


Finder = Callable[[ast.Module], Iterator[ast.AST]]
FINDERS: list[Finder] = [prints, moves_to_cuda, blanket_handlers, unsafe_loads, evaluations]


@pytest.mark.parametrize("finder", FINDERS, ids=lambda finder: finder.__name__)
def test_the_package_has_no(finder: Finder) -> None:
    found = []
    for path in package_modules().values():
        tree = parse(path)
        if finder is prints and is_command(tree):
            continue
        found += [shown(path, node) for node in finder(tree)]
    assert found == []


@pytest.mark.parametrize(
    ("finder", "bad", "good"),
    [
        (prints, "print(1)", "log.print(1)"),
        (moves_to_cuda, "x.cuda()", "torch.cuda.is_available()"),
        (moves_to_cuda, "a.b().cuda(0)", "x.to(y.device)"),
        (moves_to_cuda, "x.to('cuda:1')", "x.to('cpu')"),
        (moves_to_cuda, "torch.zeros(1, device='cuda')", "torch.zeros(1, device=device)"),
        (blanket_handlers, "try:\n    f()\nexcept:\n    pass", "try:\n    f()\nexcept OSError:\n    pass"),
        (blanket_handlers, "try:\n    f()\nexcept (OSError, Exception) as e:\n    pass", "pass"),
        (blanket_handlers, "try:\n    f()\nexcept Exception:\n    pass", "try:\n    f()\nexcept Exception:\n    raise"),
        (unsafe_loads, "torch.load(f)", "torch.load(f, weights_only=True)"),
        (unsafe_loads, "load(f, weights_only=False)", "load(f)"),
        (unsafe_loads, "yaml.unsafe_load(f)", "yaml.safe_load(f)"),
        (unsafe_loads, "yaml.load(f, Loader=yaml.Loader)", "json.load(f)"),
        (unsafe_loads, "cfg.merge_from_file(f, allow_unsafe=True)", "cfg.merge_from_file(f, allow_unsafe=False)"),
        (evaluations, "eval(text)", "model.eval()"),
        (evaluations, "exec(text)", "ast.literal_eval(text)"),
    ],
)
def test_finders_tell_bad_from_good(finder: Finder, bad: str, good: str) -> None:
    assert len(list(finder(ast.parse(bad)))) == 1
    assert not list(finder(ast.parse(good)))


def test_only_files_that_end_as_commands_may_print() -> None:
    assert is_command(ast.parse("def main(): ...\nif __name__ == '__main__':\n    main()"))
    assert not is_command(ast.parse("if True:\n    print(1)"))
    assert not is_command(ast.parse(""))


# --- size ----------------------------------------------------------------------------------------------------------


def test_no_file_outgrows_its_idea() -> None:
    files = python_files(PACKAGE, "tests", "tools", "datasets") + sorted(REPOSITORY.glob("*.py"))
    lengths = {shown(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert len(lengths) > 10
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}
