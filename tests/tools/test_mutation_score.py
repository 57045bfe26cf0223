from __future__ import annotations

import ast

import pytest

from tools.mutants import apply_mutant, find_mutants, show_mutant
from tools.mutation_score import choose_tests, report, wilson

SOURCE = '''"""Words that are left alone."""

from __future__ import annotations

LIMIT: int = 3


def clip(value: int, *, low: int = 0) -> int:
    """More words."""
    if not value < LIMIT:
        raise ValueError(f"value must be below {LIMIT}, got {value + 1}")
    print("small", end="")
    return -value if value > low and value != 1 else value * 2
'''


def test_every_place_is_found_once_and_words_and_types_are_left_alone():
    sorts = sorted(mutant.what for mutant in find_mutants(SOURCE))
    wanted = [
        "assignment",
        "number",
        "number",
        "sign",
        "comparison",
        "statement",
        "keyword",
        "string",
        "string",
        "result",
    ]
    wanted += ["condition", "and/or", "comparison", "comparison", "number", "sign", "operator", "number"]
    assert sorts == sorted(wanted)


def test_kernels_that_triton_reads_from_their_file_are_left_alone():
    source = "@triton.jit\ndef kernel(a):\n    return a + 1\n\n\n@other\ndef plain(a):\n    return a + 1\n"
    assert {mutant.line for mutant in find_mutants(source)} == {8}


def test_each_mutant_differs_from_the_source_in_its_own_way():
    plain = ast.unparse(ast.parse(SOURCE))
    changed = [ast.unparse(apply_mutant(SOURCE, mutant.number)) for mutant in find_mutants(SOURCE)]
    assert plain not in changed
    assert len(set(changed)) == len(changed)
    for text in changed:
        compile(text, "mutant", "exec")
    with pytest.raises(ValueError, match="number must be that of a mutant, got 99"):
        apply_mutant(SOURCE, 99)


@pytest.mark.parametrize(
    ("source", "mutants"),
    [
        ("x = a < b", ["x = None", "x = a <= b"]),
        ("x = a and not b", ["x = None", "x = a or not b", "x = a and b"]),
        ("f(a, b=True)", ["None", "f(a)", "f(a, b=False)"]),
        ("for i in x:\n    break", ["for i in x:\n    continue"]),
        ("x += 2 ** y", ["x -= 2 ** y", "x += 2 * y", "x += 3 ** y"]),
    ],
)
def test_changes(source, mutants):
    assert [ast.unparse(apply_mutant(source, mutant.number)) for mutant in find_mutants(source)] == mutants


def test_a_mutant_is_shown_as_lines_and_placed_by_its_statement():
    (mutant,) = (found for found in find_mutants(SOURCE) if found.what == "operator")
    assert (mutant.line, mutant.last_line) == (13, 13)
    shown = show_mutant(SOURCE, mutant.number).splitlines()
    assert shown == [
        f"{sign}    return -value if value > low and value != 1 else value {op} 2" for sign, op in ("-*", "+/")
    ]
    (compound,) = (found for found in find_mutants(SOURCE) if found.what == "sign" and found.line == 10)
    assert compound.last_line == 10


def test_the_tests_of_a_line_are_its_own_first_then_the_quick_ones_as_far_as_the_time_goes():
    own = {"seconds": {"tests/core/test_a.py::slow": 0.9, "tests/core/test_a.py::quick": 0.1}}
    other = {"seconds": {"tests/core/test_b.py::quick": 0.01, "tests/core/test_b.py::long": 9.0}}
    for content in (own, other):
        content["lines"] = {"a.py": {"5": list(content["seconds"])}}
    (mutant,) = find_mutants("\n\n\n\nf()")
    chosen = choose_tests({"a": own, "b": other}, "a.py", mutant, 5.0)[0]
    assert [name.rpartition("/")[2] for name in chosen] == ["test_a.py::quick", "test_a.py::slow", "test_b.py::quick"]
    assert len(choose_tests({"a": own, "b": other}, "a.py", mutant, 50.0)[0]) == 4
    assert choose_tests({"a": own}, "other.py", mutant, 50.0) == ([], 0.0)


def test_the_report_counts_and_shows_what_survived():
    results = [
        {"module": "a.py", "line": 1, "what": "number", "end": end, "tests": 2, "diff": "-1\n+2"}
        for end in ["killed"] * 8 + ["timed out", "survived"]
    ]
    said = report(results)
    assert said.startswith("score 9/10 = 90.0% (95 % interval 59.6% to 98.2%)")
    assert said.endswith("a.py:1 number (2 tests)\n    -1\n    +2")
    low, high = wilson(0, 20)
    assert low == pytest.approx(0.0, abs=1e-12)
    assert high == pytest.approx(0.1611, abs=1e-4)
