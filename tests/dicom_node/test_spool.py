"""The spool keeps what it has taken, whole, and nothing else."""

from pathlib import Path

import pytest

from dicom_node import spool as spools
from dicom_node.spool import OtherContent, Spool, SpoolFull, key_of
from tests.small_disk import SmallDisk


def test_a_slice_is_there_after_a_restart_and_what_was_half_written_is_not(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1000)
    assert spool.take("k", "a", b"slice")
    (tmp_path / "incoming" / "half").write_bytes(b"sl")
    again = Spool(tmp_path, 1000)
    assert again.series() == ["k"]
    assert again.slices("k") == ["a"]
    assert again.slice_path("k", "a").read_bytes() == b"slice"
    assert again.used_bytes == 5
    assert list((tmp_path / "incoming").iterdir()) == []


def test_the_same_slice_is_taken_once_and_another_under_its_name_is_refused(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1000)
    assert spool.take("k", "a", b"slice")
    assert not spool.take("k", "a", b"slice")
    with pytest.raises(OtherContent):
        spool.take("k", "a", b"other")
    assert spool.slice_path("k", "a").read_bytes() == b"slice"
    assert spool.used_bytes == 5
    assert list((tmp_path / "incoming").iterdir()) == []


def test_a_full_spool_takes_nothing_until_something_left(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 8)
    spool.take("k", "a", b"slice")
    with pytest.raises(SpoolFull):
        spool.take("k", "b", b"slice")
    assert spool.slices("k") == ["a"]
    assert spool.remove("k", ["a"])
    assert spool.used_bytes == 0
    assert spool.take("k", "b", b"slice")


def test_slices_leave_room_on_the_disk_for_the_results(small_disk: SmallDisk) -> None:
    spool = Spool(small_disk.outside, 10**9)
    with pytest.raises(SpoolFull):
        spool.take("k", "a", b"slice")
    assert (spool.series(), spool.used_bytes, small_disk.files()) == ([], 0, [])


def test_on_a_full_disk_nothing_is_half_written_and_all_goes_on_later(
    small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if others had used up the room that the slices left free."""
    monkeypatch.setattr(spools, "KEPT_FREE", -(10**9))
    spool = Spool(small_disk.outside, 10**9)
    assert spool.take("k", "a", b"slice")
    result = spool.folder("k") / "revision-1" / "result.json"
    spool.write(result, b"{}")
    before, used = small_disk.files(), spool.used_bytes
    small_disk.fill()
    for step in (
        lambda: spool.take("k", "b", b"slice"),
        lambda: spool.take("new", "c", b"slice"),
        lambda: spool.write(result, b"[]"),
        lambda: spool.bury("k", "no answer"),
    ):
        with pytest.raises(OSError, match="No space left on device"):
            step()
    assert (small_disk.files(), spool.used_bytes) == (before, used)
    assert result.read_bytes() == b"{}"
    assert spool.dead_letters() == 0
    small_disk.free()
    assert spool.take("k", "b", b"slice")
    spool.write(result, b"[]")
    assert result.read_bytes() == b"[]"
    spool.bury("k", "no answer")
    assert spool.dead_letters() == 1


def test_a_series_with_a_late_slice_is_not_removed(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1000)
    spool.take("k", "a", b"1")
    before = spool.slices("k")
    spool.take("k", "b", b"2")
    assert not spool.remove("k", before)
    assert spool.slices("k") == ["a", "b"]


def test_a_restart_counts_as_an_arrival(tmp_path: Path) -> None:
    clock = iter([1.0, 5.0, 40.0, 50.0]).__next__
    spool = Spool(tmp_path, 1000, clock)
    spool.take("k", "a", b"1")
    assert spool.last_arrival("k") == 5.0
    assert Spool(tmp_path, 1000, clock).last_arrival("k") == 40.0


def test_the_series_that_waits_longest_comes_first(tmp_path: Path) -> None:
    clock = iter([0.0, 1.0, 2.0, 3.0]).__next__
    spool = Spool(tmp_path, 1000, clock)
    for key, name in (("k1", "a"), ("k2", "a"), ("k1", "b")):
        spool.take(key, name, b"1")
    assert spool.series() == ["k2", "k1"]


def test_a_dead_letter_is_taken_up_again_by_command(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1000)
    spool.take("k", "a", b"1")
    spool.bury("k", "the PACS refused it")
    assert (spool.series(), spool.dead_letters()) == ([], 1)
    assert list(spools.dead_letters(tmp_path)) == [("k", "the PACS refused it")]
    assert spools.retry(tmp_path, "k")
    assert (spool.series(), spool.dead_letters(), spool.slices("k")) == (["k"], 0, ["a"])
    assert not spools.retry(tmp_path, "k")


def test_a_new_slice_takes_a_dead_letter_up_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1000)
    spool.take("k", "a", b"1")
    spool.bury("k", "no answer")
    spool.take("k", "b", b"2")
    assert (spool.series(), spool.dead_letters(), spool.slices("k")) == (["k"], 0, ["a", "b"])


def test_a_result_replaces_an_older_one_whole(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1000)
    spool.take("k", "a", b"1")
    place = spool.folder("k") / "revision-1" / "result.json"
    spool.write(place, b"{}")
    spool.write(place, b"[]")
    assert place.read_bytes() == b"[]"
    assert [path.name for path in place.parent.iterdir()] == ["result.json"]


def test_a_key_does_not_show_its_uids() -> None:
    assert key_of("1.2.3", "1.2.3.4") == key_of("1.2.3", "1.2.3.4") != key_of("1.2.3.1", "2.3.4")
    assert "1.2.3" not in key_of("1.2.3", "1.2.3.4")
