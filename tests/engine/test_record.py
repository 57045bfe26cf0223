from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage, get_event_storage

from s2uniseg_d2.engine.record import (
    EVALUATED,
    ProgressPrinter,
    RecordHook,
    last_values,
    restore_histories,
    take_back,
)


def step(storage, iteration):
    storage.iter = iteration
    storage.put_scalars(total_loss=float(iteration**2 % 7), time=0.5)
    storage.put_scalar("lr", 1.0 / (iteration + 1), smoothing_hint=False)


def record(folder, start, stop, max_iter, kept=None, *, every=0, ends_in=""):
    """Run the hook over steps as the trainer does, and return its state after the last one.

    With ``every`` there is an evaluation after so many steps; the process dies in the last step's ``evaluation``,
    before the step's ``line``, or leaves orderly.
    """

    def evaluate():
        storage = get_event_storage()
        storage.put_scalar("segm/AP", 100.0 * storage.iter, smoothing_hint=False)
        storage.put_scalar(EVALUATED, 1.0, smoothing_hint=False)

    hook = RecordHook(folder, max_iter, evaluation=(evaluate, every) if every else None)
    if kept:
        hook.load_state_dict(kept)
    with EventStorage(start) as storage:
        hook.trainer = SimpleNamespace(storage=storage, start_iter=start, max_iter=max_iter)
        hook.before_train()
        state = kept
        for iteration in range(start, stop):
            step(storage, iteration)
            hook.trainer.iter = iteration
            state = hook.state_dict()
            if ends_in == "evaluation" and iteration == stop - 1:
                break
            if every and (iteration + 1) % every == 0 and iteration + 1 < max_iter:
                evaluate()
            if ends_in == "line" and iteration == stop - 1:
                break
            hook.after_step()
        if not ends_in:
            hook.after_train()
        for writer in hook._writers:
            writer.close()
    return state


def lines(folder):
    timed = ("iterations_per_second", "eta_seconds", EVALUATED)
    found = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in found]


def test_a_stopped_record_goes_on_as_if_it_had_not_been(tmp_path):
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    record(alone, 0, 60, 60)
    kept = record(stopped, 0, 33, 60)
    record(stopped, 33, 47, 60)  # a try that was killed: its checkpoint is the one at 32
    # a file of the killed try that ends in the middle of a line
    with (stopped / "metrics.json").open("a") as file:
        file.write('{"iteration": 4')
    record(stopped, 33, 60, 60, kept)
    # the end of the first part has a line of its own; all others agree, medians over the seam included
    assert [line for line in lines(stopped) if line["iteration"] != 32] == lines(alone)
    assert [line["iteration"] for line in lines(stopped)] == [19, 32, 39, 59]


def test_an_evaluation_at_the_seam_stays(tmp_path):
    metrics = tmp_path / "metrics.json"
    evaluation = '{"iteration": 9, "segm/AP": 2, "evaluation_seconds": 1}'
    kept = ['{"iteration": 8, "total_loss": 1}', evaluation, '{"notes": "of an evaluation"}']
    # the second is what a step that failed had put
    gone = [
        '{"iteration": 9, "total_loss": 1}',
        '{"iteration": 9, "teacher_temp": 0.04}',
        '{"iteration": 12, "segm/AP": 2}',
        "[1]",
        "{",
    ]
    metrics.write_text("\n".join([kept[0], *gone, *kept[1:]]) + "\n")
    take_back(metrics, 9)
    assert metrics.read_text().splitlines() == kept
    before = metrics.stat().st_mtime_ns
    take_back(metrics, 9)
    assert metrics.stat().st_mtime_ns == before
    take_back(tmp_path / "none.json", 9)


@pytest.mark.parametrize("ends_in", ["evaluation", "line"])
@pytest.mark.parametrize("done", [15, 20, 40, 60])
def test_an_evaluation_and_a_line_that_a_kill_cut_off_are_made_up_for(tmp_path, ends_in, done):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    record(alone, 0, 60, 60, every=15)
    kept = record(killed, 0, done, 60, every=15, ends_in=ends_in)
    record(killed, done, 60, 60, kept, every=15)
    assert lines(killed) == lines(alone)
    assert [line["iteration"] for line in lines(alone) if "segm/AP" in line] == [14, 29, 44]


def test_an_evaluation_that_a_signal_cut_short_is_made_up_for(tmp_path):
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    record(alone, 0, 60, 60, every=15)
    kept = record(stopped, 0, 15, 60, every=15, ends_in="evaluation")
    # the end of the run has written the step's line, without the figures
    with (stopped / "metrics.json").open("a") as file:
        file.write('{"iteration": 14, "total_loss": 1.0}\n')
    record(stopped, 15, 60, 60, kept, every=15)
    assert lines(stopped) == lines(alone)


def test_a_run_that_begins_anew_takes_the_place_of_the_first_try(tmp_path):
    record(tmp_path, 0, 30, 60)
    record(tmp_path, 0, 60, 60)
    assert [line["iteration"] for line in lines(tmp_path)] == [19, 39, 59]


def test_a_run_without_a_step_left_evaluates_again_and_stands_there_once(tmp_path):
    def finish(kept=None):
        hook = RecordHook(tmp_path, 30)
        if kept:
            hook.load_state_dict(kept)
        with EventStorage(30) as storage:
            hook.trainer = SimpleNamespace(storage=storage, start_iter=30, max_iter=30)
            hook.before_train()
            storage.put_scalar("segm/AP", 50.0, smoothing_hint=False)
            hook.after_train()

    kept = record(tmp_path, 0, 30, 30)
    for _ in range(2):
        finish(kept)
        assert [(line["iteration"], "segm/AP" in line) for line in lines(tmp_path)] == [
            (19, False),
            (29, False),
            (30, True),
        ]


def test_values_come_back_where_they_stood():
    with EventStorage(0) as first:
        for iteration in range(30):
            step(first, iteration)
            if iteration == 25:
                first.put_scalar("segm/AP", 3.0)
    kept = last_values(first)
    assert set(kept) == {"total_loss", "time"}
    with EventStorage(30) as second:
        restore_histories(second, kept)
    for name in kept:
        assert second.history(name).values() == first.history(name).values()[-20:]
        assert second.latest()[name] == first.latest()[name]


@pytest.mark.filterwarnings("error")
def test_a_line_of_the_log_says_how_far_how_fast_and_how_long(caplog):
    printer = ProgressPrinter(1000)
    with EventStorage(0) as storage, caplog.at_level(logging.INFO, logger="s2uniseg_d2"):
        printer.write()  # nothing is known yet
        for iteration in range(40):
            step(storage, iteration)
            losses = {"loss_mask_ins": 2.0, "loss_mask_ins_0": 1.0, "loss_mask_sem": 0.5, "loss_query_sd": 4.0}
            storage.put_scalars(grad_norm=0.25, **{"seconds/load": 0.1}, **losses)
            if iteration % 20 == 19:
                printer.write()
        assert storage.latest()["eta_seconds"][0] == 480
        assert storage.latest()["iterations_per_second"][0] > 0
        storage.iter = 1000
        printer.write()
    first, _, last = (record.getMessage() for record in caplog.records)
    assert first == "iter 1 of 1,000"
    assert last.startswith("iter 40 of 1,000  ")
    for part in (" it/s  eta 0:08:00  ", "  query_sd 4  mask 3.5  ", "  grad_norm 0.25  lr 0.025  load 20%"):
        assert part in last


def test_what_no_line_will_need_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr("s2uniseg_d2.engine.record.REMEMBERED", 30)
    hook = RecordHook(tmp_path, 200)
    with EventStorage(0) as storage:
        hook.trainer = SimpleNamespace(storage=storage, start_iter=0, max_iter=200)
        hook.before_train()
        for iteration in range(100):
            step(storage, iteration)
            hook.trainer.iter = iteration
            hook.after_step()
        hook.after_train()
        assert max(len(history.values()) for history in storage.histories().values()) == 30
        assert storage.history("lr").values()[0][1] == 70
        assert storage.history("lr").global_avg() > storage.history("lr").avg(30)
