"""What each line of a result says of where it was read."""

import gpu


def test_a_line_names_run_machine_day_and_commit(monkeypatch):
    monkeypatch.setenv("QUIRE_COMMIT", "abc1234")
    found = gpu.origin("2026-01-01-h200-1")
    assert list(found) == ["run", "machine", "date", "commit"]
    assert (found["run"], found["commit"]) == ("2026-01-01-h200-1", "abc1234")
    assert " x " in found["machine"]
    monkeypatch.delenv("QUIRE_COMMIT")
    assert gpu.origin("")["commit"]
