"""What is known of the files of a folder: on disk, read where it is needed, made anew where something changed."""

import errno
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pictures import SPLITS, folder, picture

from pruneaudit.workloads.data import folders, index
from pruneaudit.workloads.data.folders import Files, read_folders
from pruneaudit.workloads.data.index import Draft, Index, kind_of, opened

KIND = kind_of(12)


def records(start, stop):
    """Made-up records; everything follows from their number."""
    found = np.zeros(stop - start, dtype=KIND)
    numbers = np.arange(start, stop)
    found["name"] = [b"c/%07d" % number for number in numbers]
    found["size"], found["width"] = numbers, numbers % 7 + 1
    found["sha"][:, :8] = numbers.astype("<u8")[:, None].view(np.uint8)
    return found


def written(path, count, step=5000):
    draft = Draft(path, KIND, 1)
    for start in range(0, count, step):
        draft.add(records(start, min(start + step, count)))
    return draft.finish()


@pytest.fixture
def leaves(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "cache"))
    root = folder(tmp_path / "leaves", SPLITS)
    for path in root.rglob("*.png"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return {"train": root / "train", "test": root / "val"}


def content(files):
    return [files.path(number).read_bytes() for number in range(len(files))], files.labels.tolist()


@pytest.mark.parametrize("rows", [None, [0], [3, 4095, 4096, 9999], list(range(0, 10_000, 3)), []])
def test_blocks_are_the_rows_that_were_asked_for(tmp_path, rows):
    found = written(tmp_path / "index.bin", 10_000)
    blocks = list(found.blocks(None if rows is None else np.array(rows, dtype=np.int32)))
    expected = records(0, 10_000) if rows is None else records(0, 10_000)[rows]
    assert np.array_equal(np.concatenate([records(0, 0), *blocks]), expected)
    assert all(len(block) <= index.BLOCK for block in blocks)


def test_an_index_is_opened_again_and_a_cut_off_one_is_none(tmp_path):
    path = tmp_path / "index.bin"
    written(path, 100)
    assert np.array_equal(opened(path).read(0, 100), records(0, 100)) and opened(path).checked == 1
    assert np.array_equal(pickle.loads(pickle.dumps(opened(path))).read(7, 9), records(7, 9))
    path.write_bytes(path.read_bytes()[:-1])
    assert opened(path) is None and opened(tmp_path / "none.bin") is None
    path.write_bytes(b"{}")
    assert opened(path) is None


def test_a_newer_file_in_its_place_changes_no_index_that_is_open(tmp_path):
    path = tmp_path / "index.bin"
    before = written(path, 100)
    written(path, 50)
    assert np.array_equal(before.read(0, 100), records(0, 100)) and len(opened(path)) == 50


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_a_disk_that_fills_up_loses_nothing(tmp_path, monkeypatch, fails_at):
    calls = []
    write = Draft._write

    def full(draft, content):
        calls.append(len(content))
        if len(calls) == fails_at:
            # Half of it arrives.
            draft._file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(draft, content)

    monkeypatch.setattr(Draft, "_write", full)
    found = written(tmp_path / "index.bin", 10_000)
    assert found.path is None and np.array_equal(found.read(0, 10_000), records(0, 10_000))
    assert not list(tmp_path.iterdir())


def test_without_a_cache_everything_is_the_same(leaves, tmp_path, monkeypatch):
    expected = read_folders(leaves)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "file"))
    found = read_folders(leaves)
    assert found["train"].index.path is None and expected["train"].index.path is not None
    for name in leaves:
        assert content(found[name]) == content(expected[name])
        assert all(np.array_equal(*pair) for pair in zip(found[name].digests(), expected[name].digests(), strict=True))


def test_one_new_file_and_one_changed_one_are_read_and_no_others(leaves, monkeypatch):
    read_folders(leaves)
    read = []
    original = folders._fact
    monkeypatch.setattr(folders, "_fact", lambda *found: read.append(found[2].name) or original(*found))
    first = read_folders(leaves)
    assert not read
    picture(70).save(leaves["train"] / "dog" / "002.png")
    second = read_folders(leaves)
    assert read == ["002.png"] and content(first["train"]) == content(second["train"])
    assert [path.suffix for path in second["train"].index.path.parent.iterdir()] == [".bin"] * 2
    # Another number of files is another index: all of them are looked at.
    picture(71).save(leaves["train"] / "dog" / "900.png")
    assert len(read_folders(leaves)["train"]) == 21 and len(read) == 22


def test_parts_of_parts_keep_their_files_and_labels(leaves):
    train = read_folders(leaves)["train"]
    half = train.take(np.arange(0, 20, 2))
    quarter = half.take(np.array([1, 3, 9]))
    assert [quarter.path(number) for number in range(3)] == [train.path(number) for number in (2, 6, 18)]
    assert quarter.labels.tolist() == [0, 0, 1] and train.labels.tolist() == [0] * 12 + [1] * 8
    assert np.array_equal(np.concatenate(list(quarter.digests())), np.concatenate(list(train.digests()))[[2, 6, 18]])


def test_what_is_held_does_not_grow_with_the_number_of_files(tmp_path):
    """Four bytes for each file of a part, and none for a whole."""
    held = []
    for count in (2000, 200_000):
        written(tmp_path / f"{count}.bin", count)
        tracemalloc.start()
        whole = Files(Path("/leaves"), opened(tmp_path / f"{count}.bin"), np.array([0, count // 2, count]), "RGB")
        part = whole.take(np.arange(0, count, 2))
        for block in part.index.blocks(part.rows):
            assert len(block)
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert held[1] - held[0] < 4.5 * 100_000
    assert isinstance(whole.index, Index) and len(part.labels) == 100_000
