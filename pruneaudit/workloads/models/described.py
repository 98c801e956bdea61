"""Models of Hugging Face's as the ``config.json`` of a folder describes them: tokens in, logits out, no weights yet.

Their parameters lie on torch's device ``meta``, so that a decoder of eight billion is planned in the memory of none;
:func:`fill` gives them values. Buffers that follow from the configuration (rates of rotary places) are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pruneaudit.errors import ConfigError, one_line
from pruneaudit.streams import isolated
from pruneaudit.workloads.models.brought import arguments
from pruneaudit.workloads.models.tensors import fill
from pruneaudit.workloads.networks import Network, config_of

#: Sizes of the network on which units are tried: of each head, neurons of an MLP, and words. Two groups of heads, and
#: as many layers as it takes to have one of each kind, two at least.
_HEAD, _HIDDEN, _WORDS = 8, 12, 64


class Decoder(nn.Module):
    """A language model whose logits are ``[N, classes, T]``, of the token that follows each of ``[N, T]``.

    Args:
        net: Hugging Face's model.

    Attributes:
        protected: Names of the parts that tokens do not pass: a tower for images, say. They lose nothing.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        language = net.get_decoder()
        inside = {id(module) for module in language.modules()}
        words = {id(net.get_input_embeddings()), id(net.get_output_embeddings())}
        self.protected = tuple(
            name
            for name, module in self.named_modules()
            if id(module) not in inside | words and not any(id(part) in inside for part in module.modules())
        )

    def forward(self, tokens: torch.Tensor, images: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of the next token behind each.

        Args:
            tokens: ``[N, T]``.
            images: ``[M, C, H, W]``, in the order of their places among the tokens; None: no token is one of an image.
        """
        # Without values nobody can look whether sequences are packed.
        length = tokens.shape[1]
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device="meta").tril() if tokens.is_meta else None
        more = {} if images is None else {"pixel_values": images}
        logits: torch.Tensor = self.net(input_ids=tokens, attention_mask=mask, use_cache=False, **more).logits
        return logits.transpose(1, 2)


def build(network: Network, classes: int) -> Decoder:
    """Build what a folder describes.

    Args:
        network: What to build; its ``model_args`` take the place of what the configuration says.
        classes: Tokens of the data.

    Returns:
        A network whose parameters have shapes, but no values.

    Raises:
        ConfigError: It is no language model that transformers knows, or has other tokens than the data.
    """
    assert network.described is not None
    given = {**config_of(network.described), **arguments(network)}
    model = _made(given, network.model)
    words = model.net.get_input_embeddings().num_embeddings
    if words < classes:
        raise ConfigError(
            f"model '{network.model}' has {words} tokens, the data {classes}; give data.tokenizer the model's folder"
        )
    return model


def narrow(network: Network) -> Decoder:
    """A small network of the same kind, on which is tried what can be removed: it has values, drawn from a fixed seed.

    It has the same classes of layers, one of each kind at least, and as many queries for each key.

    Raises:
        ConfigError: Its configuration cannot be made small.
    """
    assert network.described is not None
    given = {**config_of(network.described), **arguments(network)}
    model = _made({**given, **_small(given)}, network.model)
    return with_fresh_weights(model)


def with_fresh_weights(model: Decoder) -> Decoder:
    """The network itself, with weights as its library draws them, the same every time, on the CPU."""
    fill(model, {name: torch.zeros(each.shape, dtype=each.dtype) for name, each in model.named_parameters()})
    for module in model.modules():
        # They were, without values.
        vars(module).pop("_is_hf_initialized", None)
    with isolated(0):
        model.net.init_weights()
    return model


def _made(given: Mapping[str, Any], name: str) -> Decoder:
    """The network of a configuration, without weights."""
    with isolated(0):
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

        try:
            config = AutoConfig.for_model(**given)
            kinds = (AutoModelForCausalLM, AutoModelForImageTextToText)
            kind = next((each for each in kinds if type(config) in each._model_mapping), None)
            if kind is None:
                raise ConfigError(f"model '{name}': {given['model_type']} is no language model that transformers knows")
            with _without_weights():
                net = kind.from_config(config, attn_implementation="sdpa")
            return Decoder(net.eval().float())
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"model '{name}' cannot be built from its config.json: {one_line(error)}") from error


@contextmanager
def _without_weights() -> Iterator[None]:
    """Let parameters of new modules have no values; what else they compute when they are made stays.

    As accelerate's ``init_empty_weights`` does it.
    """
    register = nn.Module.register_parameter

    def empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        # One that has none may be shared, and is to stay so.
        if parameter is not None and not parameter.is_meta:
            module._parameters[name] = nn.Parameter(parameter.data.to("meta"), requires_grad=parameter.requires_grad)

    nn.Module.register_parameter = empty  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _small(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of sizes, made small; so is what it says of its parts."""
    found: dict[str, Any] = {
        name: {**part, **_small(part)} for name, part in given.items() if name.endswith("_config") and part
    }
    heads = given.get("num_attention_heads")
    if isinstance(heads, int):
        each = heads // (given.get("num_key_value_heads") or heads)
        groups = 1 if given.get("num_key_value_heads") == 1 else 2
        sizes = {"num_attention_heads": each * groups, "hidden_size": each * groups * _HEAD}
        found |= sizes | {"intermediate_size": _HIDDEN, "vocab_size": _WORDS}
        found |= {"num_key_value_heads": groups} if "num_key_value_heads" in given else {}
        found |= {"head_dim": _HEAD} if given.get("head_dim") else {}
        # Numbers of single tokens may be greater than there are words.
        found |= {name: None for name in given if name.endswith("_token_id")}
        kinds = given.get("layer_types")
        count = 2
        if isinstance(kinds, list):
            count = max(count, 1 + max(kinds.index(kind) for kind in set(kinds)))
            found["layer_types"] = kinds[:count]
        found["num_hidden_layers"] = count
    return found
