"""diffusers' weight names for networks with the same topology here."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from unfog.networks.autoencoder import Autoencoder
from unfog.networks.unet import Ladder
from unfog.runtime.errors import UserError

Rules = list[tuple[str, str]]
"""(pattern, replacement) pairs, all applied in order."""

_BLOCK: Rules = [(r"\.shortcut\.", ".conv_shortcut.")]
_ATTENTION: Rules = [(r"\.norm\.", ".group_norm."), (r"\.qkv\.", ".to_{q,k,v}."), (r"\.out\.", ".to_out.0.")]
_TRANSFORMER: Rules = [
    (r"\.layers\.", ".transformer_blocks."),
    (r"\.qkv\.", ".attn1.to_{q,k,v}."),
    (r"\.out\.", ".attn1.to_out.0."),
    (r"\.q\.", ".attn2.to_q."),
    (r"\.kv\.", ".attn2.to_{k,v}."),
    (r"\.out_cross\.", ".attn2.to_out.0."),
    (r"\.mlp_in\.", ".ff.net.0.proj."),
    (r"\.mlp_out\.", ".ff.net.2."),
]
_OLD: Rules = [
    (r"\.attentions\.(\d+)\.query\.", r".attentions.\1.to_q."),
    (r"\.attentions\.(\d+)\.key\.", r".attentions.\1.to_k."),
    (r"\.attentions\.(\d+)\.value\.", r".attentions.\1.to_v."),
    (r"\.attentions\.(\d+)\.proj_attn\.", r".attentions.\1.to_out.0."),
]
"""Names of attention weights in files from older versions of diffusers."""


def _replaced(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def ladder_name(blocks: int) -> Callable[[str], str]:
    """Return the function that maps weight names of a `Ladder` with `blocks` blocks per level to diffusers' names."""

    def translate(name: str) -> str:
        first, _, rest = name.partition(".")
        if first in ("down", "up"):
            index, kind, rest = rest.split(".", 2)
            level, place = divmod(int(index), blocks + (first == "up"))
            return _stage(f"{first}_blocks.{level}", place, kind, rest)
        if first == "middle":
            index, kind, rest = rest.split(".", 2)
            return _stage("mid_block", int(index), kind, rest)
        if first in ("downsample", "upsample"):
            level_of, rest = rest.split(".", 1)
            way = first.removesuffix("sample")
            return f"{way}_blocks.{level_of}.{way}samplers.0.conv.{rest.removeprefix('conv.')}"
        return name.replace("norm_out", "conv_norm_out")

    return translate


def _stage(where: str, place: int, kind: str, rest: str) -> str:
    """Return diffusers' name of a weight of a `Stage`."""
    if kind == "block":
        return _replaced(f"{where}.resnets.{place}.{rest}", _BLOCK)
    return _replaced(f"{where}.attentions.{place}.{rest}", _ATTENTION if kind == "attention" else _TRANSFORMER)


def autoencoder_name(name: str) -> str:
    """Return diffusers' name of a weight of an `Autoencoder`."""
    name = re.sub(r"^(post_)?quant\.", r"\1quant_conv.", name).replace("norm_out", "conv_norm_out")
    name = re.sub(r"^encoder\.levels\.(\d+)\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2.", name)
    name = re.sub(r"^decoder\.levels\.(\d+)\.(\d+)\.", r"decoder.up_blocks.\1.resnets.\2.", name)
    name = re.sub(r"^encoder\.halving\.(\d+)\.", r"encoder.down_blocks.\1.downsamplers.0.", name)
    name = re.sub(r"^decoder\.enlarging\.(\d+)\.", r"decoder.up_blocks.\1.upsamplers.0.conv.", name)
    name = re.sub(r"\.middle\.block1\.", ".mid_block.resnets.0.", name)
    name = re.sub(r"\.middle\.block2\.", ".mid_block.resnets.1.", name)
    if ".middle.attention." in name:
        name = _replaced(name.replace(".middle.attention.", ".mid_block.attentions.0."), _ATTENTION)
    return _replaced(name, _BLOCK)


def unlike(network: object) -> UserError:
    """Return the error for a network that diffusers does not support."""
    return UserError(
        f"diffusers has no network like {type(network).__name__}: train with network=unet or network=conditional-unet"
    )


def names(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return diffusers' names of each of our weights; several if ours concatenates several of theirs.

    Raises: UserError: If diffusers has no network of this topology.
    """
    if isinstance(network, Ladder):
        translate = ladder_name(network.blocks)
    elif isinstance(network, Autoencoder):
        translate = autoencoder_name
    else:
        raise unlike(network)
    extra = {"shift", "scale"} if isinstance(network, Autoencoder) else set()
    return {name: _spread(translate(name)) for name in network.state_dict() if name not in extra}


def _spread(name: str) -> tuple[str, ...]:
    """Expand a{x,y}b to (axb, ayb)."""
    braces = re.fullmatch(r"(.*)\{(.*)\}(.*)", name)
    if braces is None:
        return (name,)
    before, choices, after = braces.groups()
    return tuple(before + choice + after for choice in choices.split(","))


def ours(theirs: Mapping[str, Tensor], network: nn.Module, where: str) -> dict[str, Tensor]:
    """Return diffusers' weights with our names, in float32.

    Args:
        theirs: Weights with diffusers' names.
        network: The network to load them into.
        where: Their file, for error messages.

    Raises: UserError: If a weight is missing, unexpected, or of another shape.
    """
    theirs = {_replaced(name, _OLD): tensor for name, tensor in theirs.items()}
    table, state = names(network), network.state_dict()
    expected = [their_name for their_names in table.values() for their_name in their_names]
    missing = [name for name in expected if name not in theirs]
    unexpected = set(theirs) - set(expected)
    if missing or unexpected:
        fault, name = ("lacks", missing[0]) if missing else ("has the unexpected weight", min(unexpected))
        more = len(missing or unexpected) - 1
        raise UserError(f"{where} {fault} {name}{f' and {more} more' if more else ''}: weights and config do not match")
    weights = {}
    for name, their_names in table.items():
        parts = [theirs[their_name] for their_name in their_names]
        tensor = torch.cat(parts).float() if len(parts) > 1 else parts[0].float()
        if tensor.numel() != state[name].numel() or tensor.shape[0] != state[name].shape[0]:
            shapes = f"{tuple(tensor.shape)} where its config expects {tuple(state[name].shape)}"
            raise UserError(f"{where}: {their_names[0]} has the shape {shapes}: weights and config do not match")
        weights[name] = tensor.reshape(state[name].shape)  # a 1×1 convolution and a matrix are the same
    return weights


def theirs(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's weights with diffusers' names."""
    state = network.state_dict()
    weights: dict[str, Tensor] = {}
    for name, their_names in names(network).items():
        for their_name, part in zip(their_names, state[name].chunk(len(their_names)), strict=True):
            weights[their_name] = part.contiguous()
    return weights
