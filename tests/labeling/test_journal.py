from __future__ import annotations

import pytest

from s2uniseg_d2.labeling.journal import Journal, Tally, locked, side_path

SETTINGS = {"size": 512, "kinds": ("instance",)}


def fill(path, batches=3, row_bytes=0):
    journal = Journal(path, SETTINGS, row_bytes)
    for batch in range(journal.batches, batches):
        rows = bytes([batch]) * (row_bytes * batch)
        journal.append(batch, Tally(2, 1, batch, 0), b'{"batch": %d}' % batch, rows)
    return journal


def contents(journal):
    return [item["batch"] for item in journal.contents()]


def test_a_journal_gives_back_what_it_was_given(tmp_path):
    fill(tmp_path / "j").close()
    again = Journal(tmp_path / "j", SETTINGS)
    assert again.batches == 3
    assert again.total == Tally(6, 3, 3, 0)
    assert contents(again) == [0, 1, 2]
    again.close()


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_end_is_cut_off_and_done_again(tmp_path, cut):
    path = tmp_path / "j"
    fill(path).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    journal = fill(path)
    assert contents(journal) == [0, 1, 2]
    journal.close()
    assert path.read_bytes() == whole


def test_a_torn_first_line_is_written_again(tmp_path):
    path = tmp_path / "j"
    fill(path).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    fill(path).close()
    assert path.read_bytes() == whole


def test_a_damaged_line_is_cut_off_with_what_follows(tmp_path, caplog):
    path = tmp_path / "j"
    fill(path).close()
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"batch": 1', b'"batch": 9'))
    journal = Journal(path, SETTINGS)
    assert contents(journal) == [0]
    assert "incomplete and are done again" in caplog.text
    journal.close()


def test_rows_beyond_the_last_batch_go_and_batches_without_their_rows_go(tmp_path):
    path = tmp_path / "j"
    fill(path, batches=4, row_bytes=4).close()
    rows = side_path(path).read_bytes()
    assert rows == b"\1" * 4 + b"\2" * 8 + b"\3" * 12
    side_path(path).write_bytes(rows + b"torn")
    Journal(path, SETTINGS, 4).close()
    assert side_path(path).read_bytes() == rows
    side_path(path).write_bytes(rows[:-1])
    journal = Journal(path, SETTINGS, 4)
    assert journal.batches == 3
    assert side_path(path).read_bytes() == rows[:12]
    journal.close()


def test_other_settings_are_refused_and_named(tmp_path):
    fill(tmp_path / "j").close()
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(ValueError, match=r"other settings \(size 512, now 256\): .*--overwrite"):
        Journal(tmp_path / "j", {**SETTINGS, "size": 256})
    assert (tmp_path / "j").read_bytes() == before


def test_a_file_of_another_kind_is_left_alone(tmp_path):
    (tmp_path / "j").write_text("my diary\n")
    with pytest.raises(ValueError, match="is in the way"):
        Journal(tmp_path / "j", SETTINGS)
    assert (tmp_path / "j").read_text() == "my diary\n"


def test_a_batch_out_of_turn_or_without_its_rows_is_refused(tmp_path):
    journal = fill(tmp_path / "j", row_bytes=4)
    with pytest.raises(ValueError, match="next one, 3, got 4"):
        journal.append(4, Tally(), b"{}")
    with pytest.raises(ValueError, match="rows must hold 2 x 4 bytes, got 4"):
        journal.append(3, Tally(annotations=2), b"{}", b"four")
    journal.close()


def test_only_one_at_a_time_writes_an_output(tmp_path):
    output = tmp_path / "out.json"
    with locked(output):
        with pytest.raises(ValueError, match=r"out\.json is being written by another process"), locked(output):
            pass
        with locked(tmp_path / "other.json"):
            pass
    with locked(output):
        pass
    assert list(tmp_path.iterdir()) == []
