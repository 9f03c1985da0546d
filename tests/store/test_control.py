"""Wishes written by anybody are seen by the loop."""

import threading

from nbtune.store.control import FileControl, wish


def _fresh(folder):
    return FileControl(folder).look()


def test_wishes_add_up_and_counters_count(tmp_path):
    assert _fresh(tmp_path).mode == "run"
    wish(tmp_path, mode="pause")
    wish(tmp_path, checkpoint=True)
    wish(tmp_path, checkpoint=True, learning_rate=0.5)
    seen = _fresh(tmp_path)
    assert (seen.mode, seen.checkpoint, seen.sample, seen.learning_rate) == ("pause", 2, 0, 0.5)


def test_many_threads_wish_at_once_and_no_wish_is_lost(tmp_path):
    threads = [threading.Thread(target=wish, args=(tmp_path,), kwargs={"sample": True}) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _fresh(tmp_path).sample == 20


def test_a_half_written_control_file_is_no_wish(tmp_path):
    (tmp_path / "control.json").write_text('{"mode": "st')
    assert _fresh(tmp_path).mode == "run"
