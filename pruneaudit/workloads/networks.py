"""What builds a dense network, and in which version. Imports no torch.

``resnet56`` is built in; ``nets.py:mobilenet`` and ``package.module:mobilenet`` are code that a user brings;
``torchvision:NAME`` and ``timm:NAME`` come from these libraries.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import Field

from pruneaudit.errors import ConfigError
from pruneaudit.schema import Arguments, Frozen
from pruneaudit.sources import Source

#: Libraries of networks: their version is part of what they build.
LIBRARIES = ("torchvision", "timm")


class Network(Frozen):
    """What builds a dense network.

    Attributes:
        model: Key in the model registry, or a spec of the user's own.
        args: Keyword arguments beside the sizes of the data.
        source: Code that builds it, see :func:`version_of`: an edited network is another one.
        folder: Where relative paths start; no part of any identity.
    """

    model: str
    args: Arguments = ()
    source: str = ""
    folder: Path | None = Field(default=None, exclude=True)

    @property
    def library(self) -> tuple[str, str] | None:
        """Library and name there, where a library supplies it."""
        where, colon, name = self.model.partition(":")
        return (where, name) if colon and where in LIBRARIES else None

    @property
    def code(self) -> Source | None:
        """Where the user's own code that builds it is defined; None where it is built in or a library's.

        Raises:
            ConfigError: There is no such file, or no name in it.
        """
        if self.library is not None or (":" not in self.model and not self.model.endswith(".py")):
            return None
        code = Source.parse(self.model, self.folder or Path())
        if not code.name:
            raise ConfigError(f"'{self.model}': say what builds the network, as in '{self.model}:NAME'")
        return code


def version_of(network: Network) -> str:
    """Version of the code that builds a network: another one makes another network.

    Returns:
        Digest of the user's own source, and the versions of the libraries that it takes networks from; nothing for a
        built-in network, whose version is the training code's.

    Raises:
        ConfigError: What it names is not there.
    """
    if network.library is not None:
        library, name = network.library
        if not name:
            raise ConfigError(f"'{network.model}': say which network of {library}, as in '{library}:NAME'")
        return _library(library, network.model)
    code = network.code
    if code is None:
        return ""
    if code.module.partition(".")[0] in LIBRARIES:
        # Reading all that such a module imports of its package takes seconds.
        return _library(code.module.partition(".")[0], network.model)
    return " ".join([code.digest, *(_library(name, network.model) for name in LIBRARIES if code.imports(name))])


def _library(name: str, model: str) -> str:
    """Name and version of a library; how it was built (``+cpu``) does not matter."""
    try:
        return f"{name} {version(name).partition('+')[0]}"
    except PackageNotFoundError:
        how = f"pip install 'pruneaudit[{name}]'" if name == "timm" else f"pip install {name}"
        raise ConfigError(f"'{model}' needs {name}, which is not installed: {how}") from None
