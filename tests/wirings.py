"""Small networks of every wiring that units must get right, and some that they must refuse."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import densenet, mobilenet_v2, resnet, vgg
from torchvision.ops import Conv2dNormActivation


class Small(nn.Module):
    """Features, the mean over pixels, a classifier."""

    def __init__(self, features, width, classes):
        super().__init__()
        self.features = features
        self.fc = nn.Linear(width, classes)

    def forward(self, images):
        return self.fc(self.features(images).flatten(2).mean(2))


def reading(network, name, channels):
    """A network of torchvision whose first layer reads images of so many channels."""
    first = network.get_submodule(name)
    layer = nn.Conv2d(
        channels, first.out_channels, first.kernel_size, first.stride, first.padding, bias=first.bias is not None
    )
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, layer)
    return network


def halved(network, channels, classes):
    """The first two stages of a ResNet of torchvision, classifier behind them."""
    width = network.layer3[0].conv1.in_channels
    network.layer3 = network.layer4 = nn.Identity()
    network.fc = nn.Linear(width, classes)
    return reading(network, "conv1", channels)


def resnet18(channels=1, classes=10):
    return halved(resnet.ResNet(resnet.BasicBlock, [1, 2, 1, 1]), channels, classes)


def resnet50(channels=1, classes=10):
    return halved(resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1]), channels, classes)


def resnext(channels=1, classes=10):
    network = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], groups=4, width_per_group=4)
    return halved(network, channels, classes)


def mobilenet(channels=1, classes=10):
    network = mobilenet_v2(
        width_mult=0.25,
        num_classes=classes,
        inverted_residual_setting=[[1, 8, 1, 1], [4, 16, 2, 2], [4, 32, 2, 2]],
    )
    # A narrow head: torchvision's has 1280 channels at least.
    network.features[-1] = Conv2dNormActivation(8, 40, 1, activation_layer=nn.ReLU6)
    network.classifier = nn.Linear(40, classes)
    return reading(network, "features.0.0", channels)


def dense(channels=1, classes=10):
    return reading(densenet.DenseNet(8, (2, 3), 8, bn_size=2, num_classes=classes), "features.conv0", channels)


class PlainVGG(nn.Module):
    """Torchvision's layers without normalisation; the classifier has a hidden layer."""

    def __init__(self, channels=1, classes=10):
        super().__init__()
        self.features = reading(vgg.make_layers([8, "M", 16, 12, "M"]), "0", channels)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Linear(48, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, classes))

    def forward(self, images):
        return self.classifier(self.pool(self.features(images)).flatten(1))


class UNet(nn.Module):
    """Two levels; the decoder grows maps with transposed convolutions and reads the encoder's beside them."""

    def __init__(self, channels=1, classes=10):
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.bottom = nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.up2 = nn.ConvTranspose2d(16, 12, 2, 2)
        self.merge2 = nn.Sequential(nn.Conv2d(24, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU())
        self.up1 = nn.ConvTranspose2d(10, 8, 4, 2, 1, groups=2, bias=False)
        self.merge1 = nn.Conv2d(16, 6, 3, padding=1)
        self.fc = nn.Linear(6, classes)

    def forward(self, images):
        first = self.down1(images)
        second = self.down2(first)
        up = self.merge2(torch.cat([self.up2(self.bottom(second)), second], 1))
        up = F.relu(self.merge1(torch.cat([first, self.up1(up)], 1)))
        return self.fc(up.mean((2, 3)))


class Twice(nn.Module):
    """One convolution is called twice, each time with its own normalisation behind it."""

    def __init__(self, channels=1, classes=10):
        super().__init__()
        self.stem = nn.Conv2d(channels, 12, 3, padding=1)
        self.shared = nn.Conv2d(12, 12, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(12), nn.BatchNorm2d(12)
        self.last = nn.Conv2d(12, 10, 3)
        self.fc = nn.Linear(10, classes)

    def forward(self, images):
        maps = F.relu(self.stem(images))
        maps = F.relu(self.bn1(self.shared(maps)))
        maps = F.relu(self.bn2(self.shared(maps)))
        return self.fc(F.relu(self.last(maps)).mean((2, 3)))


def mlp(channels=1, classes=10):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * 32 * 32, 24),
        nn.BatchNorm1d(24),
        nn.Sigmoid(),
        nn.Linear(24, 16),
        nn.PReLU(16),
        nn.Linear(16, classes),
    )


def group_norms(channels=1, classes=10):
    features = nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.GroupNorm(8, 24),
        nn.ReLU(),
        nn.Conv2d(24, 10, 3),
        nn.ReLU(),
    )
    return Small(features, 10, classes)


class LayerNorms(nn.Module):
    """Patches, and blocks whose hidden layer no normalisation sees."""

    def __init__(self, channels=1, classes=10):
        super().__init__()
        self.stem = nn.Conv2d(channels, 12, 8, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(12, 20) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(20, 12) for _ in range(2))
        self.fc = nn.Linear(12, classes)

    def forward(self, images):
        stream = self.stem(images).flatten(2).transpose(1, 2)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            stream = stream + down(F.gelu(up(norm(stream))))
        return self.fc(stream.mean(1))


def instance_norms(channels=1, classes=10):
    features = nn.Sequential(
        nn.Conv2d(channels, 12, 3, padding=1),
        nn.InstanceNorm2d(12, affine=True),
        nn.Sigmoid(),
        nn.Conv2d(12, 10, 3, padding=1),
        nn.InstanceNorm2d(10),
        nn.ReLU(),
        nn.Conv2d(10, 8, 3),
    )
    return Small(features, 8, classes)


class Signals(nn.Module):
    """One-dimensional convolutions, then three-dimensional ones, with their normalisations."""

    def __init__(self, channels=1, classes=10):
        super().__init__()
        self.conv1 = nn.Conv1d(channels * 32, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm1d(16)
        self.conv2 = nn.Conv1d(16, 8, 3, padding=1)
        self.conv3 = nn.Conv3d(1, 6, 3, padding=1)
        self.bn3 = nn.BatchNorm3d(6)
        self.fc = nn.Linear(6, classes)

    def forward(self, images):
        maps = self.conv2(torch.sigmoid(self.bn1(self.conv1(images.flatten(1, 2)))))
        volume = maps.mean(1).view(-1, 1, 4, 4, 2)
        return self.fc(torch.sigmoid(self.bn3(self.conv3(volume))).mean((2, 3, 4)))


class Rows(nn.Module):
    """Reads the rows of a picture's maps one after the other: the last output, or what is remembered of all."""

    def __init__(self, recurrence, remembered=False, channels=1, classes=10):
        super().__init__()
        first, second = nn.Conv2d(channels, 6, 3, 4, 1), nn.Conv2d(6, 4, 3, padding=1)
        self.features = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.rows = recurrence(32, 12, batch_first=True)
        self.hidden, self.fc = nn.Linear(12, 8), nn.Linear(8, classes)
        self.remembered = remembered

    def forward(self, images):
        read, state = self.rows(self.features(images).transpose(1, 2).flatten(2))
        return self.fc(F.relu(self.hidden(state[0][-1] if self.remembered else read[:, -1])))


class Steps(Rows):
    """The same with a cell that is called for each row."""

    def __init__(self, channels=1, classes=10):
        super().__init__(nn.GRU, channels=channels, classes=classes)
        self.rows = nn.GRUCell(32, 12)

    def forward(self, images):
        state = None
        for row in self.features(images).transpose(1, 2).flatten(2).unbind(1):
            state = self.rows(row, state)
        return self.fc(F.relu(self.hidden(state)))


#: Builds a network for images [1, 32, 32]; no name is one of the registry.
class Thrifty(nn.Module):
    """Blocks that are computed twice to keep nothing for their gradients."""

    def __init__(self, channels=1, classes=10):
        super().__init__()
        self.stem = nn.Conv2d(channels, 6, 3, 2, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1))
            for _ in range(2)
        )
        self.fc = nn.Linear(6, classes)

    def forward(self, images):
        maps = F.relu(self.stem(images))
        for block in self.blocks:
            # Reentrant: while it runs nobody records what it does.
            maps = maps + checkpoint(block, maps, use_reentrant=True)
        return self.fc(maps.mean((2, 3)))


NETWORKS = {
    "basic-blocks": resnet18,
    "bottlenecks": resnet50,
    "resnext": resnext,
    "mobilenet": mobilenet,
    "densenet": dense,
    "vgg": PlainVGG,
    "unet": UNet,
    "twice": Twice,
    "mlp": mlp,
    "group-norm": group_norms,
    "layer-norm": LayerNorms,
    "instance-norm": instance_norms,
    "signals": Signals,
    "lstm": partial(Rows, nn.LSTM, True),
    "gru": partial(Rows, nn.GRU),
    "gru-cell": Steps,
    "checkpoints": Thrifty,
}


class Scrambled(nn.Module):
    """What the first convolution writes is stored in another order before the second layer reads it."""

    def __init__(self, how, channels=1, classes=10):
        super().__init__()
        self.how = how
        self.conv1 = nn.Conv2d(channels, 8, 3, 4, 1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(2 if how == "pixels" else 8, 6, 3, padding=1)
        self.hidden = nn.Linear(8 * 64, 10)
        self.fc = nn.Linear(10 if how == "permute" else 6, classes)

    def forward(self, images):
        maps = F.relu(self.conv2(F.relu(self.conv1(images))))
        if self.how == "permute":
            return self.fc(F.relu(self.hidden(maps.permute(0, 2, 3, 1).flatten(1))))
        if self.how == "roll":
            maps = maps.roll(3, dims=1)
        elif self.how == "shuffle":
            maps = maps.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        elif self.how == "pixels":
            maps = F.pixel_shuffle(maps, 2)
        elif self.how == "pool":
            maps = maps + maps.mean(1, keepdim=True)
        elif self.how == "softmax":
            maps = maps.softmax(1)
        return self.fc(F.relu(self.conv3(maps)).mean((2, 3)))


#: Ways of storing channels in another order, or of mixing them, that torch-pruning 1.6.1 does not see.
SCRAMBLED = ("permute", "roll", "shuffle", "pixels", "pool", "softmax")
