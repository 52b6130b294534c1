"""diffusers' weight names for networks with the same topology here."""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from unfog.networks.autoencoder import Autoencoder
from unfog.networks.unet import Ladder
from unfog.recipes.networks import AutoencoderSpec, ConditionalUNetSpec, NetworkSpec, UNetSpec
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
WRAPPED = r"(^|\.)(?:_orig_mod|module)\."
"""What torch.compile and data parallelism put into names, at any depth."""


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


def unlike(network: str) -> UserError:
    """Return the error for a network that diffusers does not support."""
    return UserError(f"diffusers has no network like {network}: train with network=unet or network=conditional-unet")


def names(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return diffusers' names of each of our weights; several if ours concatenates several of theirs.

    Raises: UserError: If diffusers has no network of this topology.
    """
    if isinstance(network, Ladder):
        translate = ladder_name(network.blocks)
    elif isinstance(network, Autoencoder):
        translate = autoencoder_name
    else:
        raise unlike(type(network).__name__)
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
        wanted = state[name].shape
        part = (wanted[0] // len(parts), *wanted[1:])
        for their_name, tensor in zip(their_names, parts, strict=True):
            if _plain(tensor.shape) != _plain(part):
                shapes = f"{tuple(tensor.shape)} where its config expects {part}"
                raise UserError(f"{where}: {their_name} has the shape {shapes}: weights and config do not match")
        # a 1×1 convolution and a matrix are the same
        found = [finite(tensor, their_name, where) for their_name, tensor in zip(their_names, parts, strict=True)]
        weights[name] = (
            torch.cat([tensor.reshape(part) for tensor in found]) if len(found) > 1 else found[0].reshape(part)
        )
    return weights


def check_depth(spec: NetworkSpec, theirs: Mapping[str, Tensor], where: str) -> None:
    """Raise a UserError if a configuration is of more blocks than there are weights, before anything is built."""
    side = "encoder." if isinstance(spec, AutoencoderSpec) else ""
    assert isinstance(spec, UNetSpec | ConditionalUNetSpec | AutoencoderSpec)
    last = [f"{side}down_blocks.{len(spec.widths) - 1}.resnets.{spec.blocks - 1}.conv1.weight"]
    if isinstance(spec, ConditionalUNetSpec):
        last.append(f"mid_block.attentions.0.transformer_blocks.{spec.layers - 1}.attn2.to_k.weight")
    for name in last:
        if name not in theirs:
            raise UserError(f"{where} lacks {name}: weights and config do not match")


def unwrapped(theirs: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return weights without what wrappers put into their names.

    Raises: UserError: If two weights then have the same name.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        short = name
        while (shorter := re.sub(WRAPPED, r"\1", short)) != short:
            short = shorter
        if short in plain:
            raise UserError(f"{where} has the weight {short} twice, also as {name}: remove one of them")
        plain[short] = tensor
    return plain


def finite(tensor: Tensor, name: str, where: str) -> Tensor:
    """Return a weight in float32.

    Raises: UserError: If it is not of floating-point numbers, or a value is not finite.
    """
    if not tensor.is_floating_point():
        raise UserError(f"{where}: {name} is of {tensor.dtype}, for instance quantized: use float weights")
    single = tensor.float()
    if not bool(single.isfinite().all()):
        raise UserError(f"{where}: the weight {name} is not finite: use weights from before they broke")
    return single


def _plain(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without axes of length 1."""
    return tuple(side for side in shape if side != 1)


def theirs(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's weights with diffusers' names."""
    state = network.state_dict()
    weights: dict[str, Tensor] = {}
    for name, their_names in names(network).items():
        for their_name, part in zip(their_names, state[name].chunk(len(their_names)), strict=True):
            weights[their_name] = part.contiguous()
    return weights
