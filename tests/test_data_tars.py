"""Images in tar archives are those of the folders that were packed: the same order, labels, tensors and identities."""

import bz2
import gzip
import lzma
import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import SPLITS, folder, picture
from torchvision.datasets import ImageFolder

from pruneaudit.errors import ConfigError
from pruneaudit.workloads.data import load, tars
from pruneaudit.workloads.data.folders import read_folders
from pruneaudit.workloads.data.loading import identity
from pruneaudit.workloads.schema import DataConfig


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "cache"))


def pack(path, files, how=tarfile.GNU_FORMAT):
    """Write an archive of files, by the names that they have in it; it is older than any look at it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=how) as archive:
        for name, file in files:
            archive.add(file, name)
    os.utime(path, (1_000_000_000, 1_000_000_000))


def by_class(root, place):
    """An archive for each class, as ImageNet comes."""
    for split in root.iterdir():
        for label in split.iterdir():
            pack(place / split.name / f"{label.name}.tar", [(file.name, file) for file in label.iterdir()])
    return place


def in_shards(root, place, count=3):
    """Archives of whatever images, out of order, each named with its class."""
    for split in root.iterdir():
        files = sorted(file for file in split.rglob("*") if file.is_file())
        order = np.random.default_rng(0).permutation(len(files))
        for number in range(count):
            named = [(f"./{files[one].relative_to(split)}", files[one]) for one in order[number::count]]
            pack(place / split.name / f"shard-{number}.tar", named, how=tarfile.PAX_FORMAT)
    return place


def config(root, **more):
    return DataConfig(
        name=f"imagefolder:{root}", train=("RandomResizedCrop(6)",), test=("Resize(6)",), validation=4, **more
    )


def epoch(root):
    return [images for images, _ in load(config(root)).batches(3, "retrain", 1, 5)]


@pytest.mark.parametrize("packed", [by_class, in_shards])
def test_batches_splits_and_identity_are_those_of_the_folders(tmp_path, packed):
    root = folder(tmp_path / "leaves", SPLITS, size=(9, 7))
    place = packed(root, tmp_path / "packed")
    ours, theirs = load(config(place)), load(config(root))
    for name in ("train", "validation", "test"):
        assert torch.equal(getattr(ours, name).labels, getattr(theirs, name).labels)
    assert torch.equal(ours.test.images, theirs.test.images)
    assert all(torch.equal(*pair) for pair in zip(epoch(place), epoch(root), strict=True))
    # Who packs what a campaign stands on trains nothing again.
    assert identity(config(place)) == identity(config(root))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "a-b", "a b", "b", "ä"]), st.sampled_from(["", "x/", "x-y/", "x/z/"]),
                  st.sampled_from(["1", "10", "2", "B", "é" * 60, "-"]), st.integers(0, 2)),
        min_size=1, max_size=12, unique_by=lambda one: one[:3],
    )
)  # fmt: skip
def test_the_order_is_that_of_torchvisions_folders(files):
    with tempfile.TemporaryDirectory() as name:
        root, place = Path(name) / "leaves", Path(name) / "packed"
        content = {}
        for number, (label, below, file, shard) in enumerate(files):
            path = root / label / f"{below}{file}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(number, (2, 2)).save(path)
            content.setdefault(shard, []).append((f"{label}/{below}{file}.png", path))
        for shard, members in content.items():
            pack(place / f"{shard}.tar", members)
        expected = ImageFolder(str(root))
        found = read_folders({"train": place})["train"]
        below = [os.path.relpath(path, root) for path, _ in expected.samples]
        assert [str(found.path(number).relative_to(place)).split("/", 1)[1] for number in range(len(found))] == below
        assert found.labels.tolist() == expected.targets
        for number, (image, _) in enumerate(expected):
            assert np.array_equal(np.asarray(found[number]), np.asarray(image))


def test_some_classes_are_those_that_are_drawn_of_folders(tmp_path):
    root = folder(tmp_path / "leaves", {"train": {f"c{number}": 2 for number in range(7)}})
    place = in_shards(root, tmp_path / "packed")
    ours, theirs = (read_folders({"train": one / "train"}, 3)["train"] for one in (place, root))
    assert [ours.path(number).name for number in range(6)] == [theirs.path(number).name for number in range(6)]
    assert [ours.path(number).parent.name for number in range(6)] == [
        theirs.path(number).parent.name for number in range(6)
    ]
    assert ours.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_what_is_known_is_kept_until_an_archive_changes(tmp_path, monkeypatch):
    root = folder(tmp_path / "leaves", SPLITS)
    place = in_shards(root, tmp_path / "packed")
    looked, original = [], tars._look
    monkeypatch.setattr(tars, "_look", lambda path, number: looked.append(path.name) or original(path, number))
    first = read_folders({"train": place / "train"})["train"]
    assert len(looked) == 3
    assert len(read_folders({"train": place / "train"})["train"]) == len(first)
    assert len(looked) == 3
    before = np.concatenate(list(first.digests()))
    # Another image in the place of one, of the same size: whoever holds the old index sees that it is another.
    path = place / "train" / "shard-1.tar"
    found = next(row for row in range(len(first)) if first.path(row).is_relative_to(path))
    record = first.index.read(found, found + 1)[0]
    with path.open("r+b") as file:
        file.seek(int(record["start"]) + int(record["size"]) - 1)
        file.write(b"?")
    after = np.concatenate(list(first.digests()))
    assert np.flatnonzero((before != after).any(axis=1)).tolist() == [found]
    # One that has just changed may change again within a tick of the clock: what was found of it is not kept for good.
    for expected in (6, 9):
        read_folders({"train": place / "train"})
        assert len(looked) == expected


def cut(count):
    return lambda content: content[:-count]


def test_what_is_no_whole_archive_is_told_in_one_line(tmp_path):
    root = folder(tmp_path / "leaves", {"train": {"cat": 3, "dog": 3}})
    whole = in_shards(root, tmp_path / "packed", count=1) / "train" / "shard-0.tar"
    plain = whole.read_bytes()
    with tarfile.open(whole) as archive:
        starts, inside = [member.offset for member in archive], archive.getmembers()[-1].offset_data + 20
        ends = archive.offset
    damaged = {
        # In the middle of a file, between two of them, and before the end.
        "no whole tar archive: unexpected end of data; copy it again": plain[:inside],
        "no whole tar archive: it does not end": plain[: starts[3]],
        "does not end as archives do": plain[:ends],
        # A damaged header, and an archive behind the end: what follows would be left out in silence.
        "as archives do; copy": plain[: starts[3]] + b"\1" * 512 + plain[starts[3] + 512 :],
        "not end as archives": plain + plain,
        "no whole tar archive: ": b"",
        r"is compressed \(gzip\)": gzip.compress(plain),
        r"is compressed \(bzip2\)": bz2.compress(plain),
        r"is compressed \(xz\)": lzma.compress(plain),
    }
    for said, content in damaged.items():
        whole.write_bytes(content)
        with pytest.raises(ConfigError, match=said) as found:
            read_folders({"train": whole.parent})
        assert "\n" not in str(found.value) and str(whole) in str(found.value)
    whole.rename(whole.with_suffix(".tgz")).write_bytes(gzip.compress(plain))
    with pytest.raises(ConfigError, match="decompress it"):
        read_folders({"train": whole.parent})


def test_what_would_be_taken_for_something_else_is_told_in_one_line(tmp_path):
    root = folder(tmp_path / "leaves", {"train": {"cat": 2, "dog": 2}})
    image = next(root.rglob("*.png"))
    label = tmp_path / "label.cls"
    label.write_text("1")
    link = tmp_path / "link.png"
    link.symlink_to(image)
    text = tmp_path / "text.png"
    text.write_text("no image")
    cases = {
        r"'cat/1.png' is there twice, in a.tar and b.tar; take": {name: [("cat/1.png", image)] for name in "ab"},
        r"'cat/1.png' is there twice, in a.tar; take": {"a": [("cat/1.png", image), ("./cat/1.png", image)]},
        "labels in files of their own, such as 0.cls": {"a": [("0.png", image), ("0.cls", label)]},
        "cat/1.png is no plain file": {"a": [("cat/1.png", link)]},
        "cannot read image .*a.tar/cat/1.png: cannot identify": {"a": [("cat/1.png", text)]},
        "no image in its archives": {"a": [("cat/1.txt", label)]},
        "class 'dog' is in .* only": {"a": [("cat/1.png", image)]},
    }  # fmt: skip
    for number, (said, shards) in enumerate(cases.items()):
        place = tmp_path / str(number)
        for name, files in shards.items():
            pack(place / f"{name}.tar", files)
        with pytest.raises(ConfigError, match=said) as found:
            read_folders({"train": place, "test": root / "train"})
        assert "\n" not in str(found.value)


def test_an_image_that_is_gone_is_told_by_archive_and_name(tmp_path):
    root = folder(tmp_path / "leaves", {"train": {"cat": 2, "dog": 2}})
    place = by_class(root, tmp_path / "packed") / "train"
    files = read_folders({"train": place})["train"]
    (place / "dog.tar").write_bytes(b"")
    assert np.asarray(files[0]).shape == (8, 8, 3)
    with pytest.raises(ConfigError, match=r"cannot read image .*dog\.tar/dog/000\.png: dog\.tar has become shorter"):
        files[2]
