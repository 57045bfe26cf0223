"""No file of the checkout calls what can run data as code; tests do so where an exploit is shown to be real."""

import ast
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# where an exploit is made, and where a test's own objects go through a pickle and back
EXEMPT = {
    "tests/exploits.py",
    "tests/core/test_restricted_pickle.py",
    "tests/data/test_mapper.py",
    "tests/data/test_packed.py",
    "tests/test_packaging.py",  # unpacks the wheel that it has built
    "tools/mutation_score.py",  # runs the package's own code with a change in it
}

SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn"}
PICKLES = {f"{module}.{name}" for module in ("pickle", "cPickle", "dill", "cloudpickle") for name in ("load", "loads")}
OTHERS = {"marshal.load", "marshal.loads", "shelve.open", "joblib.load", "torch.jit.load", "torch.hub.load"}
YAML = {f"yaml.{name}" for name in ("load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all")}
CODE = {"eval", "exec", "builtins.eval", "builtins.exec", "__import__"}
EXTRACT = {"extractall", "extract", "unpack_archive"}  # of archives: what lies in them is read in place


def dotted(node):
    """``a.b.c`` of a name or attribute; "?" for what is computed."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


def aliases(tree):
    """What imported names stand for: ``from pickle import load as x`` and ``import numpy as np``."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def constant(call, name):
    values = [word.value for word in call.keywords if word.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def faults(source):
    """Line and name of every call that can run data as code or hands text to a shell."""
    tree = ast.parse(source)
    known = aliases(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        head, dot, rest = dotted(node.func).partition(".")
        name = known.get(head, head) + dot + rest
        is_banned = name in SHELLS | PICKLES | OTHERS | YAML | CODE or name.rpartition(".")[2] in EXTRACT
        is_open_load = name == "torch.load" and constant(node, "weights_only") is not True
        is_switched = (
            constant(node, "shell") not in (None, False)
            or constant(node, "allow_pickle") is True
            or constant(node, "weights_only") is False
            or constant(node, "allow_unsafe") is True
        )
        if is_banned or is_open_load or is_switched:
            yield f"{node.lineno}: {name}"


def tracked():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    names = listed.stdout.split() or [str(path.relative_to(REPOSITORY)) for path in REPOSITORY.rglob("*.py")]
    return [name for name in names if not name.startswith(".") and name not in EXEMPT]


def test_nothing_runs_data_as_code():
    names = tracked()
    assert "train_net.py" in names
    assert len(names) > 300
    found = {name: list(faults((REPOSITORY / name).read_text(encoding="utf-8"))) for name in names}
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.system(x)",
        "from os import system as s\ns(x)",
        "import subprocess\nsubprocess.run(x, shell=True)",
        "import subprocess as sp\nsp.getoutput(x)",
        "eval(x)",
        "exec(x)",
        "import pickle\npickle.loads(x)",
        "from pickle import load\nload(x)",
        "import torch\ntorch.load(x)",
        "import torch\ntorch.load(x, weights_only=False)",
        "import torch as t\nt.load(x, weights_only=flag)",
        "import yaml\nyaml.load(x, Loader=yaml.SafeLoader)",
        "import yaml\nyaml.unsafe_load(x)",
        "import numpy as np\nnp.load(x, allow_pickle=True)",
        "cfg.merge_from_file(x, allow_unsafe=True)",
        "tar.extractall(x)",
        "import torch\ntorch.jit.load(x)",
    ],
)
def test_each_of_them_would_be_found(source):
    assert len(list(faults(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import json\njson.load(x)",
        "import torch\ntorch.load(x, weights_only=True)",
        "import numpy as np\nnp.load(x)",
        "import subprocess\nsubprocess.run([x], shell=False)",
        "import yaml\nyaml.safe_load(x)",
        "import ast\nast.literal_eval(x)",
        "loader.load(x)",
    ],
)
def test_none_else_would(source):
    assert list(faults(source)) == []


def test_commands_in_the_makefile_take_no_file_of_data():
    # recipes are shell text; variables that a user sets on make's command line are his own words
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    used = {word for word in ("curl", "wget", "eval ", "| sh", "| bash") if word in text}
    assert used == set()
