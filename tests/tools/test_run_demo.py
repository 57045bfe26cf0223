from __future__ import annotations

import importlib.util
import sys

import pytest


@pytest.fixture(scope="module")
def demo(repository):
    spec = importlib.util.spec_from_file_location("run_demo", repository / "tools" / "run_demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def figures(demo, value):
    results = {}
    for group, key in demo.COLUMNS.values():
        results.setdefault(group, {})[key] = value
    return results


def test_the_table_has_a_row_per_predictor_and_the_mean_with_its_range(demo):
    results = {row: [figures(demo, 1.0), figures(demo, 2.0)] for row, _, _ in demo.ROWS}
    header, *rows = demo.format_table(results).splitlines()
    assert header.split() == ["AP", "AR@10", "AR@100", "class", "AP", "PixelAcc", "mIoU", "PQ"]
    assert [row[: len(name)] for row, (name, _, _) in zip(rows, demo.ROWS, strict=True)] == [
        name for name, _, _ in demo.ROWS
    ]
    assert all(row.count("1.5 (1.0-2.0)") == len(demo.COLUMNS) for row in rows)
    assert len({len(row) for row in rows}) == 1


def test_a_command_that_fails_ends_the_demo_with_its_last_lines(demo, tmp_path):
    program = "print('before'); raise SystemExit('the reason')"
    with pytest.raises(SystemExit, match=r"failed; its log is .*log\.txt\n(?s:.*)the reason"):
        demo.run_command([sys.executable, "-c", program], tmp_path / "log.txt")
    assert "before" in (tmp_path / "log.txt").read_text()


def test_lines_of_interest_reach_the_screen(demo, tmp_path, capsys):
    demo.run_command(
        [sys.executable, "-c", "print('noise'); print('x eta: 1 total_loss: 2 y')"], tmp_path / "log", r"eta: .* 2"
    )
    assert capsys.readouterr().out.split() == ["eta:", "1", "total_loss:", "2"]
