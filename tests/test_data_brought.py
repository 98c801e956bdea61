"""Data that users bring: functions, folders of images, torchvision's sets; what is found, and what is refused."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import SPLITS, folder, picture
from PIL import Image
from torchvision import datasets as tv

import pruneaudit
from pruneaudit.errors import AuditError, ConfigError, DataMissingError
from pruneaudit.pruning import shapes
from pruneaudit.training.feed import Feed, Stream
from pruneaudit.workloads.data import Part, Streamed, facts, folders, identity, load, loading, look_in, stored_at
from pruneaudit.workloads.data.brought import find
from pruneaudit.workloads.data.loading import imitation
from pruneaudit.workloads.schema import DataConfig


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test sees what another one, or the user, has decoded."""
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PRUNEAUDIT_DATA", raising=False)


def code(tmp_path, body, name="data.py"):
    """A data function in a file: the section that names it."""
    text = "import numpy as np\nimport torch\nfrom pruneaudit import Data\n\n\n" + body
    (tmp_path / name).write_text(text, encoding="utf-8")
    return DataConfig(name=f"{name}:own", folder=tmp_path)


def own(tmp_path, expression, name="data.py"):
    return code(tmp_path, f"def own():\n    draw = np.random.default_rng(0)\n    return {expression}\n", name)


def refusal(config, kind=ConfigError):
    """What loading says, in one line."""
    with pytest.raises(kind) as caught:
        load(config)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def agree(config, loaded):
    """Sizes known before are those of what is loaded."""
    known = facts(config)
    assert (known.train, known.validation, known.test) == tuple(
        len(split) for split in (loaded.train, loaded.validation, loaded.test)
    )
    assert (known.shape, known.classes) == (loaded.shape, loaded.classes)
    assert known.example().shape == loaded.example().shape == (1, *loaded.shape)
    assert known.example().dtype == loaded.example().dtype
    return known


# Functions


def test_arrays_of_images_that_are_not_square(tmp_path):
    config = own(tmp_path, "Data(train=(draw.integers(0, 256, (40, 6, 9, 3), dtype=np.uint8), np.arange(40) % 4))")
    loaded = load(config)
    known = agree(config, loaded)
    assert known.shape == (3, 6, 9) and known.classes == 4
    assert (known.train, known.validation, known.test) == (24, 8, 8)
    assert isinstance(loaded.train, Part) and loaded.train.images.dtype == torch.uint8
    images, labels = next(loaded.batches(0, "retrain", 0, 5))
    assert images.shape == (5, 3, 6, 9) and labels.dtype == torch.int64 and not loaded.obstacle
    # Mean and deviation are those of the training split.
    pixels = loaded.normalise(loaded.train.images, torch.float64)
    assert pixels.mean((0, 2, 3)).abs().max() < 1e-4 and (pixels.std((0, 2, 3)) - 1).abs().max() < 1e-2


def test_crops_and_flips_of_images_that_are_not_square(tmp_path):
    config = own(tmp_path, "Data(train=(draw.integers(1, 256, (30, 4, 7, 1), dtype=np.uint8), np.arange(30) % 2))")
    loaded = load(config.model_copy(update={"pad": 2, "flip": True, "mean": (0.0,), "std": (1.0,)}))
    images, _ = next(loaded.batches(0, "retrain", 0, 18))
    assert images.shape == (18, 1, 4, 7) and (images == 0).any()
    # Backends that train many make the same batches on the device.
    feed = Feed(loaded, [Stream(0, "retrain", 0)] * 2, 18, torch.float32)
    feed.begin(0, 0)
    assert torch.equal(feed.next(18)[0], images)


def test_vectors_go_in_as_they_are(tmp_path):
    config = own(
        tmp_path,
        "Data(train=(draw.normal(size=(30, 5)), np.arange(30) % 3), validation=(draw.normal(size=(6, 5)), [0] * 6), "
        "test=(draw.normal(size=(9, 5)), [2] * 9))",
    )
    loaded = load(config)
    known = agree(config, loaded)
    assert known.shape == (5,) and known.channels == 5 and loaded.config.mean == ()
    inputs, labels = next(loaded.batches(0, "retrain", 0, 30))
    order = [int((loaded.train.images == row).all(1).nonzero()) for row in inputs]
    assert sorted(order) == list(range(30)) and torch.equal(labels, loaded.train.labels[order])
    assert loaded.obstacle == "inputs are no images"
    assert next(loaded.inputs(loaded.test, torch.float64))[0].dtype == torch.float64
    assert imitation(config, 7, 2).train.images.shape == (7, 5)


def test_floats_are_normalised_by_channel_where_that_is_stated(tmp_path):
    config = own(tmp_path, "Data(train=(draw.normal(3, 2, (30, 2, 4)).astype('f4'), np.arange(30) % 3))")
    loaded = load(config.model_copy(update={"mean": (3.0, 1.0), "std": (2.0, 4.0)}))
    stored = loaded.train.images
    expected = torch.stack([(stored[:, 0] - 3) / 2, (stored[:, 1] - 1) / 4], dim=1)
    assert torch.equal(loaded.normalise(stored), expected)


def test_tokens_stay_whole_numbers(tmp_path):
    config = own(tmp_path, "Data(train=(draw.integers(0, 11, (30, 6)), np.arange(30) % 2))")
    loaded = load(config)
    agree(config, loaded)
    inputs, _ = next(loaded.batches(0, "retrain", 0, 4, torch.float64))
    assert inputs.dtype == torch.int64 and loaded.example().dtype == torch.int64
    assert facts(config).highest == 10 and imitation(config, 50, 2).train.images.max() <= 10
    assert facts(config).labels == () and imitation(config, 50, 2).train.labels.shape == (50,)


DATASET = """
class Set(torch.utils.data.Dataset):
    def __init__(self, first, count):
        self.first, self.count = first, count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        draw = np.random.default_rng(self.first + number)
        return torch.from_numpy(draw.integers(0, 256, (3, 5, 8), dtype=np.uint8)), number % 2


def own():
    return Data(train=Set(0, 20), test=Set(100, 6))
"""


def test_any_map_style_dataset(tmp_path):
    config = code(tmp_path, DATASET)
    loaded = load(config)
    known = agree(config, loaded)
    assert (known.shape, known.train, known.validation, known.test) == ((3, 5, 8), 18, 2, 6)
    expected = np.random.default_rng(102).integers(0, 256, (3, 5, 8), dtype=np.uint8)
    assert np.array_equal(loaded.test.images[2].permute(2, 0, 1).numpy(), expected)


def test_a_function_may_ask_for_the_data_root_and_is_the_same_in_every_process(tmp_path):
    body = (
        "def own(root):\n    return Data(train=(torch.randn(30, int((root / 'f').read_text())), np.arange(30) % 3))\n"
    )
    config = code(tmp_path, body)
    (tmp_path / "f").write_text("4")
    torch.manual_seed(1)
    first = load(config, tmp_path)
    find.cache_clear(), load.cache_clear()
    torch.manual_seed(2)
    assert first.shape == (4,) and load(config, tmp_path).split_digest == first.split_digest


def test_a_module_is_as_good_as_a_file(tmp_path, monkeypatch):
    own(tmp_path, "Data(train=(draw.normal(size=(30, 5)), np.arange(30) % 3))", "audit_leaves.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert facts(DataConfig(name="audit_leaves:own")).shape == (5,)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("7", "returned int; expected pruneaudit.Data(train=…, test=…)"),
        ("Data(train=None)", "no training split"),
        ("Data(train=(np.zeros((9, 3)), [0] * 8))", "train: 9 inputs and 8 labels; expected [N, ...] and [N]"),
        ("Data(train=(np.zeros((9, 3)),))", "train: expected (inputs, labels), got 1 values"),
        ("Data(train=np.zeros((9, 3)))", "train is ndarray; expected (inputs, labels) or a torch.utils.data.Dataset"),
        ("Data(train=iter([]))", "train is list_iterator; expected"),
        ("Data(train=(np.zeros((9, 3)), [0.5] * 9))", "labels of train are float64 [9]; expected integers"),
        ("Data(train=(np.zeros((9, 3)), [-1] * 9))", "train has label -1; labels count from 0"),
        ("Data(train=(np.zeros((9, 3)), [0, 2] * 4 + [2]))", "no training example of class 1"),
        (
            "Data(train=(draw.normal(size=(9, 3)), [0] * 9), test=(draw.normal(size=(2, 3)), [0, 1]))",
            "test has label 1",
        ),
        ("Data(train=(np.full((9, 3), np.nan), [0] * 9))", "values that are not finite"),
        ("Data(train=(np.zeros((0, 3)), np.zeros(0, int)))", "train has no example"),
        ("Data(train=([['a']], [0]))", "inputs are no array"),
        ("Data(train=([7, 8], [0, 1]))", "2 inputs and 2 labels; expected [N, ...]"),
        ("Data(train=(np.zeros((9, 3)), [0] * 9))", "class 0 has 0 examples without a second copy"),
        ("Data(train=(draw.normal(size=(9, 3)), [0] * 9), test=(draw.normal(size=(2, 4)), [0, 0]))", "have 2 shapes"),
        ("Data(train=[(1, 2)] * 3)", "train: expected (inputs, labels), got 3 values"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_what_a_function_returns_is_checked(tmp_path, expression, said):
    assert said in refusal(own(tmp_path, expression))


def test_splits_that_share_examples_are_refused(tmp_path):
    config = own(
        tmp_path,
        "(lambda x: Data(train=(x[:20], [0, 1] * 10), validation=(x[20:24], [0] * 4), test=(x[18:20], [0, 1])))"
        "(draw.normal(size=(24, 3)))",
    )
    assert "2 examples are both in train and in test; remove them" in refusal(config)


def test_copies_inside_a_training_set_are_fine(tmp_path):
    config = own(tmp_path, "Data(train=(np.repeat(draw.normal(size=(25, 3)), [2] * 10 + [1] * 15, 0), [0] * 35))")
    loaded = load(config)
    agree(config, loaded)
    parts = [{row.numpy().tobytes() for row in part.images} for part in (loaded.train, loaded.validation, loaded.test)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.py:own", "no such file"),
        ("data.py", "name the function, too: 'data.py:FUNCTION'"),
        ("data.py:other", "has no attribute 'other'"),
        ("data.py:np", "module is no function"),
        ("no such:thing", "expected 'file.py:name' or 'package.module:name'"),
    ],
)
def test_what_names_no_function_is_refused(tmp_path, name, said):
    own(tmp_path, "Data(train=(np.zeros((9, 3)), [0] * 9))")
    assert said in refusal(DataConfig(name=name, folder=tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pad": 1}, "data.pad and data.flip need images"),
        ({"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}, "need 5 values each"),
        ({"validation": 400}, "leaves no training image"),
        ({"size": 8, "test": ("CenterCrop(4)",)}, "data.size: state sizes in data.train and data.test"),
        ({"flip": True, "train": ("RandomHorizontalFlip",)}, "it takes the place of data.pad and data.flip"),
        ({"train": ("RandomResizedCrop(4)",)}, "data.train: RandomResizedCrop(4) cannot be applied here"),
    ],
)
def test_keys_that_do_not_fit_the_data(tmp_path, change, said):
    config = own(tmp_path, "Data(train=(draw.normal(size=(30, 5)), np.arange(30) % 3))")
    assert said in refusal(config.model_copy(update=change))


# Folders


def test_a_folder_is_what_torchvision_reads(tmp_path):
    folder(tmp_path / "leaves", SPLITS)
    config = DataConfig(name="imagefolder:leaves", folder=tmp_path)
    loaded = load(config)
    known = agree(config, loaded)
    assert (known.shape, known.classes) == ((3, 8, 8), 2)
    assert (known.train, known.validation, known.test) == (18, 2, 5)
    reference = tv.ImageFolder(str(tmp_path / "leaves" / "val"))
    assert np.array_equal(loaded.test.images.numpy(), np.stack([np.asarray(image) for image, _ in reference]))
    assert loaded.test.labels.tolist() == reference.targets
    whole = [np.asarray(image).tobytes() for image, _ in tv.ImageFolder(str(tmp_path / "leaves" / "train"))]
    found = [image.numpy().tobytes() for part in (loaded.train, loaded.validation) for image in part.images]
    assert sorted(found) == sorted(whole)


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        ({"train": {"a": 6, "b": 6}, "val": {"a": 2, "b": 2}, "test": {"a": 3, "b": 3}}, (12, 4, 6)),
        ({"train": {"a": 6, "b": 6}, "test": {"a": 3, "b": 3}}, (11, 1, 6)),
        ({"train": {"a": 10, "b": 10}}, (12, 4, 4)),
        ({"": {"a": 10, "b": 10}}, (12, 4, 4)),
    ],
)
def test_fractions_are_split_off_where_there_is_no_split(tmp_path, splits, sizes):
    config = DataConfig(name=f"imagefolder:{folder(tmp_path / 'all', splits)}")
    loaded = load(config)
    agree(config, loaded)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == sizes


def test_a_path_starts_at_the_workload_or_at_the_data_root(tmp_path):
    folder(tmp_path / "root" / "leaves", SPLITS)
    config = DataConfig(name="imagefolder:leaves", folder=tmp_path)
    message = refusal(config, DataMissingError)
    assert f"no folder {tmp_path / 'leaves'}; give --audit-data-root DIR" in message
    look_in(tmp_path / "root")
    try:
        assert facts(config).train == 18 and len(load(config).train) == 18
    finally:
        look_in(None)
    assert tmp_path / "root" / "leaves" / "train" in stored_at(tmp_path / "root", config)
    with pytest.raises(DataMissingError):
        facts(config)


def test_files_of_many_sizes_need_one(tmp_path):
    root = folder(tmp_path / "leaves", SPLITS, size=lambda number: (9 + number % 3, 8 + number % 5))
    config = DataConfig(name=f"imagefolder:{root}")
    message = refusal(config)
    assert "have 15 shapes" in message and "give data.size, or data.train and data.test" in message
    loaded = load(config.model_copy(update={"size": 6}))
    assert loaded.shape == (3, 6, 6) == facts(config.model_copy(update={"size": 6})).shape
    # The first test image is number 20: 11 pixels wide and 8 high.
    resized = picture(20, (11, 8)).resize((8, 6), Image.Resampling.BILINEAR)
    assert np.array_equal(loaded.test.images[0].numpy(), np.asarray(resized)[:, 1:7])
    test = ("Resize(7)", "CenterCrop((5, 6))")
    assert load(config.model_copy(update={"test": test})).shape == (3, 5, 6)


def test_grey_folders_have_one_channel_and_mixed_ones_three(tmp_path):
    grey = folder(tmp_path / "grey", SPLITS, mode="L")
    assert facts(DataConfig(name=f"imagefolder:{grey}")).shape == (1, 8, 8)
    picture(99).save(grey / "train" / "cat" / "colours.png")
    find.cache_clear()
    with pytest.warns(UserWarning, match="images in grey and in colours: all are read as RGB"):
        assert find(DataConfig(name=f"imagefolder:{grey}", pad=1), None).train.shapes == {(8, 8, 3)}


def test_files_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    root = folder(tmp_path / "leaves", SPLITS)
    for path in root.rglob("*.png"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    read = []
    original = folders._fact
    monkeypatch.setattr(folders, "_fact", lambda *found: read.append(found[2].name) or original(*found))
    config = DataConfig(name=f"imagefolder:{root}")
    first = identity(config)
    assert len(read) == 25
    find.cache_clear()
    assert identity(config) == first and len(read) == 25, "from the cache"
    changed = root / "train" / "dog" / "003.png"
    picture(77).save(changed)
    assert identity(config) != first, "seen without looking for files anew"
    find.cache_clear()
    assert identity(config) != first and read[25:] == ["003.png"]


def test_identity_follows_code_content_labels_and_versions(tmp_path, monkeypatch):
    config = own(tmp_path, "Data(train=(draw.normal(size=(30, 5)), np.arange(30) % 3))")
    found = [identity(config)]
    assert identity(config) == found[0]
    for expression in (
        "Data(train=(draw.normal(size=(30, 5)), np.arange(30) % 2))",
        "Data(train=(draw.normal(size=(30, 5)) + 1, np.arange(30) % 3))",
        "Data(train=(draw.normal(size=(5, 30)).T, np.arange(30) % 3))",
    ):
        own(tmp_path, expression)
        find.cache_clear()
        found.append(identity(config))
    assert len(set(found)) == 4
    assert identity(DataConfig(name="digits")) is None
    flipped = DataConfig(name="digits", train=("RandomHorizontalFlip",))
    before = identity(flipped)
    monkeypatch.setattr(loading, "versions", lambda: {"torchvision": "1"})
    assert before is not None and identity(flipped) not in (None, before)


def test_what_is_wrong_with_a_folder_is_said_in_one_line(tmp_path):
    def said(change, kind=ConfigError):
        number = len(list(tmp_path.iterdir()))
        root = folder(tmp_path / f"leaves{number}", SPLITS)
        change(root)
        return refusal(DataConfig(name=f"imagefolder:{root}"), kind)

    def empty(root):
        for path in (root / "train" / "dog").iterdir():
            path.unlink()

    assert "class 'dog' has no image in" in said(empty)
    assert "val only: train and val must have the same classes" in said(lambda root: (root / "val" / "dot").mkdir())
    broken = "cannot read image"
    message = said(lambda root: (root / "val" / "cat" / "001.png").write_bytes(b"no image"))
    assert broken in message and "001.png" in message and "replace it or take it away" in message

    def cut(root):
        path = root / "val" / "cat" / "002.png"
        path.write_bytes(path.read_bytes()[:80])

    message = said(cut)
    assert broken in message and "002.png" in message
    assert "convert it to 8 bits" in said(lambda root: _deep(root / "val" / "cat" / "000.png"))
    assert "no folder 'train'" in said(lambda root: (root / "train").rename(root / "training"), DataMissingError)
    copied = said(
        lambda root: (root / "val" / "cat" / "new.png").write_bytes(_bytes(root / "train" / "dog" / "000.png"))
    )
    assert "1 example is both in" in copied and "and in test" in copied


def _deep(path):
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(path)


def _bytes(path):
    return path.read_bytes()


# torchvision


class Generated(tv.FakeData):
    """Less of it."""

    def __init__(self):
        super().__init__(60, (3, 9, 12), 4)


def test_torchvisions_generated_set(monkeypatch):
    monkeypatch.setattr(tv, "FakeData", Generated)
    config = DataConfig(name="torchvision:FakeData")
    loaded = load(config)
    known = agree(config, loaded)
    assert (known.shape, known.classes) == ((3, 9, 12), 4)
    assert (known.train, known.validation, known.test) == (36, 12, 12)


class Halves(tv.VisionDataset):
    """A set that takes split=, as half of torchvision's do, and has its own array in torchvision's other layout."""

    def __init__(self, root, split="train", download=False):
        super().__init__(root)
        if split not in ("train", "val", "test"):
            raise ValueError(f"Unknown value '{split}' for argument split")
        draw = np.random.default_rng({"train": 0, "val": 1, "test": 2}[split])
        self.data = draw.integers(0, 256, (12, 3, 4, 6), dtype=np.uint8)
        self.labels = np.arange(12) % 3

    def __len__(self):
        return 12

    def __getitem__(self, number):
        return Image.fromarray(self.data[number].transpose(1, 2, 0)), int(self.labels[number])


def test_sets_that_take_split_bring_their_own_validation(tmp_path, monkeypatch):
    monkeypatch.setattr(tv, "Halves", Halves, raising=False)
    config = DataConfig(name="torchvision:Halves")
    loaded = load(config, tmp_path)
    assert (loaded.shape, len(loaded.train), len(loaded.validation), len(loaded.test)) == ((3, 4, 6), 12, 12, 12)
    assert np.array_equal(loaded.test.images.permute(0, 3, 1, 2).numpy(), Halves("", "test").data)
    assert "torchvision:Halves needs a data folder" in refusal(config, DataMissingError)
    config = config.model_copy(update={"validation": 4})
    with pytest.raises(ConfigError, match="has a validation split of its own"):
        load(config, tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("CIFAR", ConfigError, "Did you mean 'CIFAR10'?"),
        ("SVHN", DataMissingError, "add --audit-download"),
        ("EMNIST", ConfigError, "has no split 'train'"),
        ("ImageFolder", ConfigError, "unknown dataset of torchvision"),
    ],
)
def test_what_torchvision_has_not_is_said(tmp_path, name, kind, said):
    with pytest.raises(kind) as caught:
        load(DataConfig(name=f"torchvision:{name}"), tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


# Beside known datasets


def test_transforms_of_a_dataset_known_by_name(tmp_path):
    plain = DataConfig(name="digits", mean=(0.3,), std=(0.4,))
    config = plain.model_copy(update={"train": ("RandomCrop(8, padding=1)",), "test": ("CenterCrop(8)",)})
    known, loaded = load(plain), load(config)
    agree(config, loaded)
    assert torch.equal(loaded.test.images, known.test.images) and torch.equal(loaded.train.labels, known.train.labels)
    assert isinstance(loaded.train, Streamed) and loaded.obstacle == "data is streamed"
    assert torch.equal(loaded.train.first(5).images, known.train.images[:5])
    assert loaded.config.augmentation == "RandomCrop(8, padding=1)"
    assert "ImageNet" in refusal(DataConfig(name="imagenet", train=("CenterCrop(8)",)), DataMissingError)
    assert shapes._example(config.model_copy(update={"test": ("CenterCrop((4, 6))",)})).shape == (1, 1, 4, 6)


def test_the_class_is_public():
    assert pruneaudit.Data(train=1).test is None
    assert issubclass(ConfigError, AuditError)


def test_the_example_of_the_docs(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```python\n(.*?)```", page, re.S)
    draw = np.random.default_rng(0)
    np.save(tmp_path / "leaves.npy", draw.integers(0, 256, (1000, 2, 3, 3), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.arange(1000) % 5)
    (tmp_path / "data.py").write_text(text.replace('np.load("', f'np.load("{tmp_path}/'), encoding="utf-8")
    known = facts(DataConfig(name="data.py:leaves", folder=tmp_path))
    assert (known.shape, known.classes) == ((3, 2, 3), 5)
    assert (known.train, known.validation, known.test) == (720, 80, 200)
