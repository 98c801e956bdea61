#!/usr/bin/env bash
# torchvision 0.29.1: MNIST and FashionMNIST read damaged files without a word, CIFAR-10 refuses them.
#
# The MD5 that MNIST knows is that of the archives, looked at while they are downloaded. When the dataset is opened, only
# the names of the unpacked files are looked for: one flipped bit in a label is another class, and a truncated file is a
# bare ValueError of Tensor.view(). CIFAR10 compares the MD5 of every file each time it is opened. Compare MNIST's with
# the published ones before use.
#
# Seen: a label that is 0 is read as 4 after one bit of its file was flipped, and nothing is raised or warned; of CIFAR-10
# with one flipped bit "Dataset not found or corrupted". The files are made up, of the right names.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
cd "$folder"
cat > look.py <<'PY'
import pathlib
import struct
import warnings

import torchvision

warnings.simplefilter("error")
print("torchvision", torchvision.__version__)
raw = pathlib.Path("data/MNIST/raw")
raw.mkdir(parents=True)
for part in ("train", "t10k"):
    (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, 3, 28, 28) + bytes(3 * 784))
    (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, 3) + bytes(3))
before = torchvision.datasets.MNIST("data").targets.tolist()
labels = raw / "train-labels-idx1-ubyte"
content = bytearray(labels.read_bytes())
content[-1] ^= 4
labels.write_bytes(content)
after = torchvision.datasets.MNIST("data").targets.tolist()
print("labels before", before, "and after one bit was flipped", after)
assert (before, after) == ([0, 0, 0], [0, 0, 4])

batches = pathlib.Path("data/cifar-10-batches-py")
batches.mkdir()
for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]:
    (batches / name).write_bytes(b"damaged")
try:
    torchvision.datasets.CIFAR10("data")
except RuntimeError as error:
    print("CIFAR10:", error)
    assert "corrupted" in str(error)
else:
    raise AssertionError("CIFAR10 reads damaged files as well")
PY
env/bin/python look.py
