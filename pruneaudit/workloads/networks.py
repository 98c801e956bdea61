"""What builds a dense network, and in which version. Imports no torch.

``resnet56`` is built in; ``nets.py:mobilenet`` and ``package.module:mobilenet`` are code that a user brings;
``torchvision:NAME`` and ``timm:NAME`` come from these libraries; ``hf:FOLDER`` is what the ``config.json`` of a folder
describes to Hugging Face's transformers.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import Field

from pruneaudit.errors import ConfigError
from pruneaudit.schema import Arguments, Frozen
from pruneaudit.sources import Source

#: Libraries of networks: their version is part of what they build.
LIBRARIES = ("torchvision", "timm")
#: What comes before the folder of a model of Hugging Face's, in ``model`` as in ``--audit-base``.
HUGGING_FACE = "hf"


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
    def described(self) -> Path | None:
        """The folder whose ``config.json`` describes it, where one does."""
        where, colon, path = self.model.partition(":")
        return (self.folder or Path()) / Path(path).expanduser() if colon and where == HUGGING_FACE else None

    @property
    def code(self) -> Source | None:
        """Where the user's own code that builds it is defined; None where it is built in or a library's.

        Raises:
            ConfigError: There is no such file, or no name in it.
        """
        is_code = ":" in self.model or self.model.endswith(".py")
        if self.library is not None or self.described is not None or not is_code:
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
    if network.described is not None:
        described = json.dumps(config_of(network.described), sort_keys=True)
        return f"{hashlib.sha256(described.encode()).hexdigest()} {_library('transformers', network.model)}"
    code = network.code
    if code is None:
        return ""
    if code.module.partition(".")[0] in LIBRARIES:
        # Reading all that such a module imports of its package takes seconds.
        return _library(code.module.partition(".")[0], network.model)
    return " ".join([code.digest, *(_library(name, network.model) for name in LIBRARIES if code.imports(name))])


def config_of(folder: Path) -> dict[str, Any]:
    """What the ``config.json`` of a folder says.

    Raises:
        ConfigError: There is none, or it is no description of a model.
    """
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a folder as Hugging Face keeps models") from None
    except ValueError as error:
        raise ConfigError(f"{path}: no JSON: {error}; copy it again") from None
    if not isinstance(found, dict) or "model_type" not in found:
        raise ConfigError(f"{path}: says no model_type, as the config.json of every model of Hugging Face's does")
    return found


def _library(name: str, model: str) -> str:
    """Name and version of a library; how it was built (``+cpu``) does not matter."""
    try:
        return f"{name} {version(name).partition('+')[0]}"
    except PackageNotFoundError:
        how = f"pip install {name}" if name == "torchvision" else f"pip install 'pruneaudit[{name}]'"
        raise ConfigError(f"'{model}' needs {name}, which is not installed: {how}") from None
