"""Claims: one living holder at a time, whatever dies; by real processes where it matters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from icpctl.ablate import claim as module
from icpctl.ablate.claim import CLAIM_FILE, DEAD_AFTER, Claim, ClaimLostError, holder
from icpctl.files import write_beside

HOLD = "import sys, time; from icpctl.ablate.claim import Claim; from pathlib import Path; c = Claim.take(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"


def holding_process(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def another_machine(folder: Path, seconds_ago: float = 0.0) -> None:
    """Make the claim look as if a process of another machine had made it, and last shown a sign of life so long ago."""
    file = folder / CLAIM_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"machine": "another", "owner": "other"}))
    beat = time.time() - seconds_ago
    os.utime(file, (beat, beat))


def test_a_claim_is_held_by_one_and_given_up(tmp_path: Path) -> None:
    first = Claim.take(tmp_path / "run")
    assert first is not None
    with first:
        assert Claim.take(tmp_path / "run") is None
        held = holder(tmp_path / "run")
        assert held is not None
        assert held["pid"] == os.getpid()
    assert holder(tmp_path / "run") is None
    assert list((tmp_path / "run").iterdir()) == []
    second = Claim.take(tmp_path / "run")
    assert second is not None
    with second:
        pass


def test_of_many_who_try_one_gets_it(tmp_path: Path) -> None:
    got: list[Claim] = []
    start = threading.Barrier(16)

    def attempt() -> None:
        start.wait()
        if claim := Claim.take(tmp_path):
            got.append(claim)

    for dead in (False, True):  # and of a dead one's claim
        if dead:
            another_machine(tmp_path, 2 * DEAD_AFTER)
        threads = [threading.Thread(target=attempt) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1 + dead
    got[1].__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    process = holding_process(tmp_path)
    try:
        assert Claim.take(tmp_path) is None
        process.send_signal(signal.SIGSTOP)  # it stands still, and lives
        assert holder(tmp_path) is not None
        process.kill()
        while holder(tmp_path) is not None:  # a moment until it is gone; it is not reaped yet
            time.sleep(0.01)
        claim = Claim.take(tmp_path)
        assert claim is not None
        with claim:
            pass
    finally:
        process.kill()
        process.communicate()


def test_another_machine_is_alive_as_long_as_its_heart_beats(tmp_path: Path) -> None:
    ours = Claim.take(tmp_path)
    assert ours is not None
    another_machine(tmp_path, DEAD_AFTER / 2)
    assert Claim.take(tmp_path) is None
    another_machine(tmp_path, DEAD_AFTER * 1.1)
    assert holder(tmp_path) is None
    after = Claim.take(tmp_path)
    assert after is not None
    with after:
        assert json.loads((tmp_path / CLAIM_FILE).read_text())["owner"] == after.owner
    ours.__exit__(None, None, None)


def test_a_reused_process_id_is_another_process(tmp_path: Path) -> None:
    ours = Claim.take(tmp_path)
    assert ours is not None
    with ours:
        file = tmp_path / CLAIM_FILE
        text = file.read_text()
        file.write_text(json.dumps(json.loads(text) | {"started": 1.0}))
        assert holder(tmp_path) is None
        file.write_text(text)
        assert holder(tmp_path) is not None


OURS = json.dumps(module._machine())


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"owner": 3}', f'{{"machine": {OURS}}}', f'{{"machine": {OURS}, "pid": "x", "started": 1}}',
     f'{{"machine": {OURS}, "pid": {10**30}, "started": 1}}', f'{{"machine": {OURS}, "pid": -1, "started": NaN}}',
     '{"machine": "another", "owner": "../../x"}', '{"progress": 5}', "[" * 100_000],
)  # fmt: skip
def test_a_claim_that_cannot_be_read_is_judged_by_its_age(content: str, tmp_path: Path) -> None:
    file = tmp_path / CLAIM_FILE
    file.write_text(content)
    assert holder(tmp_path) is not None
    os.utime(file, (1, 1))
    assert holder(tmp_path) is None
    claim = Claim.take(tmp_path)  # nor does it stop the next one
    assert claim is not None
    with claim:
        assert [path.name for path in tmp_path.iterdir()] == [CLAIM_FILE]


def test_a_claim_from_the_future_is_waited_for_no_longer_than_any_other(tmp_path: Path) -> None:
    file = tmp_path / CLAIM_FILE
    file.write_text('{"machine": "another", "owner": "a"}')
    ahead = time.time() + 86_400
    os.utime(file, (ahead, ahead))
    assert holder(tmp_path) is not None  # it may be alive, and shows that by a heartbeat
    assert file.stat().st_mtime < ahead - 80_000  # from now on it grows old
    beat = file.stat().st_mtime - 2 * DEAD_AFTER
    os.utime(file, (beat, beat))
    assert holder(tmp_path) is None


@pytest.mark.parametrize("kind", ["dangling link", "loop", "pipe"])
def test_a_claim_that_is_no_file_is_judged_by_its_age_and_replaced(tmp_path: Path, kind: str) -> None:
    file, mine = tmp_path / "run" / CLAIM_FILE, tmp_path / "mine"
    file.parent.mkdir()
    match kind:
        case "dangling link":
            file.symlink_to(mine)
        case "loop":
            file.symlink_to(file)
        case "pipe":
            os.mkfifo(file)
    os.utime(file, (1, 1), follow_symlinks=False)
    claim = Claim.take(file.parent)
    assert claim is not None
    with claim:
        assert file.is_file()
        assert not file.is_symlink()
    assert not mine.exists()


def test_a_heartbeat_is_not_written_through_a_link(tmp_path: Path) -> None:
    """The owner stands in the claim, so a name made from it could be foreseen."""
    mine = tmp_path / "mine"
    mine.write_text("precious")
    claim = Claim.take(tmp_path / "run")
    assert claim is not None
    with claim:
        (tmp_path / "run" / f"{CLAIM_FILE}.{claim.owner}").symlink_to(mine)
        claim._beat()
    assert mine.read_text() == "precious"


def test_the_heart_beats_with_the_progress_and_a_lost_claim_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.02)
    claim = Claim.take(tmp_path)
    assert claim is not None
    with claim:
        claim.progress = {"epoch": 3}
        os.utime(tmp_path / CLAIM_FILE, (1, 1))

        def until(condition: object) -> None:
            deadline = time.monotonic() + 600
            while not condition():  # type: ignore[operator]
                assert time.monotonic() < deadline
                time.sleep(0.01)

        until(lambda: (tmp_path / CLAIM_FILE).stat().st_mtime > 1)
        until(lambda: (holder(tmp_path) or {}).get("progress") == {"epoch": 3})
        claim.check()
        another_machine(tmp_path)
        until(lambda: claim._lost)
        with pytest.raises(ClaimLostError):
            claim.check()
    assert json.loads((tmp_path / CLAIM_FILE).read_text())["owner"] == "other"  # not ours to remove


def test_a_process_that_slept_for_long_looks_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Claim.take(tmp_path)
    assert claim is not None
    with claim:
        another_machine(tmp_path)
        claim.check()  # the heart has beaten a moment ago
        monkeypatch.setattr(time, "time", lambda: claim._beaten + 2 * DEAD_AFTER)
        with pytest.raises(ClaimLostError):
            claim.check()


def test_a_file_that_cannot_be_read_for_a_moment_is_no_lost_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Claim.take(tmp_path)
    assert claim is not None
    with claim:
        with monkeypatch.context() as patch:
            patch.setattr(module, "read_json", lambda path: {})
            claim._beat()
        claim.check()
    assert not list(tmp_path.iterdir())


def test_a_claim_comes_into_being_with_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So nobody can take one that is just being made for an old and empty one."""
    link, seen = os.link, []

    def look(source: Path, target: Path) -> None:
        seen.append(json.loads(source.read_text())["owner"])
        link(source, target)
        assert json.loads(target.read_text())["owner"] == seen[0]

    monkeypatch.setattr(os, "link", look)
    claim = Claim.take(tmp_path)
    assert claim is not None
    with claim:
        assert seen == [claim.owner]

    def without_links(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", without_links)
    again = Claim.take(tmp_path)
    assert again is not None
    with again:
        assert Claim.take(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_claim_that_has_just_taken_the_place_of_a_dead_one_is_not_replaced(tmp_path: Path) -> None:
    """Two judge the same claim dead; the slower one comes to act when the faster one holds the run."""
    fast = Claim.take(tmp_path)
    assert fast is not None
    with fast:
        slow = Claim(tmp_path / CLAIM_FILE)
        assert slow._take_over({"owner": "dead"}) is False
        assert json.loads((tmp_path / CLAIM_FILE).read_text())["owner"] == fast.owner
        assert [file.name for file in tmp_path.iterdir()] == [CLAIM_FILE]


def test_a_sleeper_whose_successor_has_come_and_gone_has_lost_its_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Claim.take(tmp_path)
    assert claim is not None
    with claim:
        (tmp_path / CLAIM_FILE).unlink()  # the successor has finished the run, and given its claim back
        claim._beat()
        claim.check()  # but not within a moment
        monkeypatch.setattr(time, "time", lambda: claim._beaten + 2 * DEAD_AFTER)
        with pytest.raises(ClaimLostError):
            claim.check()
    assert not list(tmp_path.iterdir())


def test_who_falls_asleep_within_a_heartbeat_does_not_replace_the_claim_of_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Claim.take(tmp_path)
    assert claim is not None
    with claim:
        now = time.time

        def asleep(path: Path, content: bytes) -> Path:
            another_machine(tmp_path)
            monkeypatch.setattr(time, "time", lambda: now() + 2 * DEAD_AFTER)
            return write_beside(path, content)

        monkeypatch.setattr(module, "write_beside", asleep)
        claim._beat()
        assert json.loads((tmp_path / CLAIM_FILE).read_text())["owner"] == "other"
        with pytest.raises(ClaimLostError):
            claim.check()
    assert [path.name for path in tmp_path.iterdir()] == [CLAIM_FILE]
