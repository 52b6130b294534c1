"""What diffusers calls each weight of a network that has the same topology here."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from unfog.networks.autoencoder import Autoencoder
from unfog.networks.unet import Ladder
from unfog.runtime.errors import UserError

Rules = list[tuple[str, str]]
"""(pattern, replacement) in the order in which they are tried; all that match apply."""

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
"""Names of attention in files that older versions of diffusers wrote."""


def _replaced(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def ladder_name(blocks: int) -> Callable[[str], str]:
    """Return the function from names in a `Ladder` with so many blocks a level to diffusers' names."""

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
            place_of, rest = rest.split(".", 1)
            way = first.removesuffix("sample")
            return f"{way}_blocks.{place_of}.{way}samplers.0.conv.{rest.removeprefix('conv.')}"
        return name.replace("norm_out", "conv_norm_out")

    return translate


def _stage(where: str, place: int, kind: str, rest: str) -> str:
    """Return the name of a weight of a `Stage`."""
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
    """Return the error for a network that diffusers does not have."""
    return UserError(
        f"diffusers has no network like {type(network).__name__}: train one with --set network=unet or "
        "network=conditional-unet"
    )


def names(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return for each of our weights what diffusers calls it; several names where ours is several of theirs in one.

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
    """Return a{x,y}b as (axb, ayb)."""
    found = re.fullmatch(r"(.*)\{(.*)\}(.*)", name)
    return (name,) if found is None else tuple(found[1] + one + found[3] for one in found[2].split(","))


def ours(theirs: Mapping[str, Tensor], network: nn.Module, where: str) -> dict[str, Tensor]:
    """Return diffusers' weights under our names, in float32.

    Args:
        theirs: The weights by diffusers' names.
        network: The network that takes them.
        where: Their file, for the error's sentence.

    Raises: UserError: If a weight is missing, of another shape, or one that the network does not have.
    """
    theirs = {_replaced(name, _OLD): tensor for name, tensor in theirs.items()}
    wanted, state, found = names(network), network.state_dict(), {}
    missing = [one for several in wanted.values() for one in several if one not in theirs]
    strange = set(theirs) - {one for several in wanted.values() for one in several}
    if missing or strange:
        kind, name = ("lacks", missing[0]) if missing else ("has besides what its config says", min(strange))
        more = len(missing or strange) - 1
        raise UserError(f"{where} {kind} {name}{f' and {more} more' if more else ''}: weights and config do not fit")
    for name, several in wanted.items():
        parts = [theirs[one] for one in several]
        tensor = torch.cat(parts).float() if len(parts) > 1 else parts[0].float()
        if tensor.numel() != state[name].numel() or tensor.shape[0] != state[name].shape[0]:
            shapes = f"{tuple(tensor.shape)} where its config asks for {tuple(state[name].shape)}"
            raise UserError(f"{where}: {several[0]} has the shape {shapes}: weights and config do not fit")
        found[name] = tensor.reshape(state[name].shape)  # a convolution of one place is a matrix
    return found


def theirs(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's weights under diffusers' names."""
    state = network.state_dict()
    found: dict[str, Tensor] = {}
    for name, several in names(network).items():
        for one, part in zip(several, state[name].chunk(len(several)), strict=True):
            found[one] = part.contiguous()
    return found
