"""Streamed data: the same inputs whoever reads them, from wherever, in bounded memory."""

import numpy as np
import pytest
import torch
from pictures import folder

from pruneaudit.errors import ConfigError
from pruneaudit.measure.accuracy import evaluate
from pruneaudit.measure.trainability import jacobian
from pruneaudit.training.loop import Trainer
from pruneaudit.training.many import train_many
from pruneaudit.training.metering import Meter
from pruneaudit.training.runs import Training
from pruneaudit.training.watch import Pictures, Watch
from pruneaudit.workloads.data import Dataset, Part, Streamed, load, loading, streamed
from pruneaudit.workloads.data.loading import stored_in_file
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import DataConfig

torch.set_num_threads(1)
RANDOM = ("RandomResizedCrop(6)", "RandomHorizontalFlip", "RandAugment(2, 9)")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "usual_workers", lambda: 0)


@pytest.fixture
def leaves(tmp_path):
    return folder(tmp_path / "leaves", {"train": {"cat": 16, "dog": 14}, "test": {"cat": 4, "dog": 5}}, (8, 6))


def of(root, monkeypatch=None, **keys):
    """The dataset of a folder; with ``monkeypatch`` streamed from a file, however small it is."""
    if monkeypatch is not None:
        monkeypatch.setattr(loading, "RESIDENT_BYTES", 0)
    load.cache_clear()
    return load(DataConfig(name=f"imagefolder:{root}", **keys))


def with_workers(dataset, workers):
    from dataclasses import replace

    parts = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    return replace(
        dataset,
        **{name: replace(part, workers=workers) for name, part in parts.items() if isinstance(part, Streamed)},
    )


def epoch_of(dataset, epoch=0, batch=7, seed=0, start=0):
    images, labels = zip(*dataset.batches(seed, "retrain", epoch, batch, torch.float64, start), strict=True)
    return torch.cat(images), torch.cat(labels)


class Net(torch.nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(96, 2))
        self.double()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_workers_change_nothing(leaves):
    alone = of(leaves, train=RANDOM, test=("CenterCrop(6)",))
    expected = epoch_of(alone)
    assert expected[0].shape == (27, 3, 6, 6)
    for workers in (1, 3):
        images, labels = epoch_of(with_workers(alone, workers))
        assert torch.equal(images, expected[0]) and torch.equal(labels, expected[1])


def test_an_augmented_image_is_a_function_of_seed_epoch_and_its_number(leaves):
    dataset = of(leaves, train=RANDOM, test=("CenterCrop(6)",))
    images, labels = epoch_of(dataset, epoch=2)
    torch.manual_seed(123)
    again, _ = epoch_of(dataset, epoch=2, batch=5)
    assert torch.equal(again, images), "neither batches nor global generators matter"
    later, late_labels = epoch_of(dataset, epoch=2, start=2)
    assert torch.equal(later, images[14:]) and torch.equal(late_labels, labels[14:]), "as a resumed epoch goes on"
    for other in ({"epoch": 3}, {"epoch": 2, "seed": 1}):
        assert not torch.equal(epoch_of(dataset, **other)[0], images)


def test_reading_moves_no_generator(leaves):
    dataset = with_workers(of(leaves, train=RANDOM, test=("CenterCrop(6)",)), 1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    epoch_of(dataset)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("keys", [{}, {"pad": 2, "flip": True}, {"size": 5, "pad": 1}])
def test_a_streamed_folder_gives_the_bits_of_a_resident_one(leaves, monkeypatch, keys):
    resident = of(leaves, **keys)
    streamed = of(leaves, monkeypatch, **keys)
    assert isinstance(resident.train, Part) and isinstance(streamed.train, Streamed)
    assert streamed.train.store is not None and streamed.shape == resident.shape
    assert streamed.config.mean == resident.config.mean and streamed.config.std == resident.config.std
    for epoch in range(2):
        for one, other in zip(epoch_of(resident, epoch), epoch_of(streamed, epoch), strict=True):
            assert torch.equal(one, other)
    for name in ("train", "validation", "test"):
        one, other = getattr(resident, name), getattr(streamed, name)
        assert torch.equal(one.first(4).images, other.first(4).images) and torch.equal(one.labels, other.labels)
        for chunk, same in zip(resident.inputs(one, batch=3), streamed.inputs(other, batch=3), strict=True):
            assert torch.equal(chunk[0], same[0]) and torch.equal(chunk[1], same[1])


def test_without_a_file_of_decoded_images_everything_is_the_same(leaves, monkeypatch, tmp_path):
    stored = of(leaves, monkeypatch, pad=1)
    expected = epoch_of(stored)
    (tmp_path / "no-folder").write_text("")
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "no-folder"))
    plain = of(leaves, pad=1)
    assert plain.train.store is None
    assert torch.equal(epoch_of(plain)[0], expected[0]) and plain.split_digest == stored.split_digest


def test_a_damaged_file_of_decoded_images_is_made_anew(leaves, monkeypatch):
    before = of(leaves, monkeypatch)
    path = before.train.store.path
    expected, content = epoch_of(before)[0], bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    assert torch.equal(epoch_of(of(leaves))[0], expected) and path.read_bytes() != content
    path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(epoch_of(of(leaves))[0], expected)


def test_an_unchanged_store_is_not_decoded_again(leaves, monkeypatch):
    dataset = of(leaves, monkeypatch)
    part = Streamed(dataset.test.examples, dataset.test.labels, dataset.test.static, dataset.test.stored_shape, True)
    monkeypatch.setattr(streamed, "stream", lambda *_: pytest.fail("decoded again"))
    assert stored_in_file(part).store.path == dataset.test.store.path


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_broken_image_is_named_wherever_it_is_read(leaves):
    path = leaves / "train" / "cat" / "003.png"
    content = path.read_bytes()
    dataset = of(leaves, train=RANDOM, test=("CenterCrop(6)",))
    # Broken behind its header, after it was found: nobody saw it before.
    path.write_bytes(content[:60])
    for workers in (0, 2):
        with pytest.raises(
            ConfigError, match=r"cannot read image .*003\.png: .*; replace it or take it away"
        ) as caught:
            epoch_of(with_workers(dataset, workers))
        assert "\n" not in str(caught.value)


def test_transforms_must_end_in_one_size(leaves):
    dataset = of(leaves, train=("RandomResize(4, 9)",), test=("CenterCrop(6)",))
    with pytest.raises(
        ConfigError, match=r"data\.train: example \d+ has shape .* end it with a transform that gives one"
    ):
        epoch_of(dataset)


def test_a_changed_file_changes_the_digest_of_its_split(leaves, monkeypatch):
    dataset = of(leaves, monkeypatch)
    before = dataset.test.digest, dataset.train.digest
    path = leaves / "test" / "dog" / "000.png"
    path.write_bytes((leaves / "train" / "dog" / "000.png").read_bytes() + b"x")
    assert dataset.test.digest != before[0] and dataset.train.digest == before[1]


def trained(dataset, backend="torch"):
    model = Net()
    recipe = Recipe(epochs=2, lr="0:0.01", batch=8, momentum=0.9)
    with Meter(model) as meter:
        history = Trainer(model, dataset, recipe, 0, "retrain", meter, "fp64", backend=backend).fit()
    return model, history


def test_a_training_on_streamed_data_is_the_training_on_resident_data(leaves, monkeypatch):
    resident, streamed = of(leaves, pad=1, flip=True), of(leaves, monkeypatch, pad=1, flip=True)
    (one, expected), (other, history) = trained(resident), trained(streamed)
    assert history == expected
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items())
    score, same = (evaluate(one, data, data.test, "fp64") for data in (resident, streamed))
    assert score.loss == same.loss and np.array_equal(score.correct, same.correct)
    assert jacobian(one, streamed, 9) == jacobian(one, resident, 9)


def test_backends_that_need_data_in_memory_say_why_they_do_not_train(leaves, monkeypatch):
    dataset = of(leaves, monkeypatch)
    trainings = [Training(Net(), dataset, Recipe(epochs=1, lr="0:0.01", batch=8), 0, "retrain", "fp64")]
    (result,) = train_many(trainings, "grouped")
    assert result.error is None and result.backend == "torch" and result.reason == "not grouped: data is streamed"
    one_by_one = of(leaves, train=RANDOM, test=("CenterCrop(6)",))
    assert one_by_one.obstacle == "data is streamed"


def test_held_out_pictures_are_found_in_streamed_data(leaves, monkeypatch):
    for dataset in (of(leaves, pad=1, flip=True), of(leaves, monkeypatch, pad=1, flip=True)):
        pictures = Pictures(dataset)
        held_out = next(dataset.inputs(dataset.test))[0]
        pictures.see(held_out[:3])
        pictures.see(held_out[3:5].flip(-1))
        pictures.see(next(dataset.inputs(dataset.train))[0][:4])
        assert (pictures.foreign, pictures.compare()) == (9, 5)


def test_a_watch_does_not_take_the_harness_for_the_method(leaves, monkeypatch):
    dataset = with_workers(of(leaves, train=RANDOM, test=("CenterCrop(6)",)), 1)
    with Watch(Net(), [], Pictures(dataset), {"data": [leaves]}) as watch:
        epoch_of(dataset)
    assert not watch.reached
    with Watch(Net(), [], Pictures(dataset), {"data": [leaves]}) as watch:
        iterator = dataset.batches(0, "retrain", 0, 7)
        next(iterator)
        (leaves / "test" / "dog" / "000.png").read_bytes()
    assert [found.partition(":")[0] for found in watch.reached] == ["data"]


def test_memory_holds_a_batch_at_a_time(leaves, monkeypatch):
    """What is read ahead of its use is bounded: nobody asks for the last images while the first are used."""
    dataset = of(leaves, train=("CenterCrop(6)",), test=("CenterCrop(6)",))
    asked = []
    original = type(dataset.train.examples).__getitem__
    monkeypatch.setattr(
        type(dataset.train.examples), "__getitem__", lambda self, n: asked.append(n) or original(self, n)
    )
    batches = dataset.batches(0, "retrain", 0, 4)
    next(batches)
    assert len(asked) == 4
    next(batches)
    assert len(asked) == 8


def test_a_device_gets_the_batches(leaves, monkeypatch):
    dataset = of(leaves, monkeypatch).to(torch.device("meta"))
    assert isinstance(dataset, Dataset) and dataset.train.device.type == "meta"
    assert next(dataset.inputs(dataset.test))[0].device.type == "meta"
