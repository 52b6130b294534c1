"""diffusers' network configurations to ours, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

from unfog.interop.files import meant
from unfog.networks.autoencoder import Autoencoder
from unfog.networks.conditional import ConditionalUNet
from unfog.networks.unet import UNet
from unfog.recipes.networks import NetworkSpec
from unfog.recipes.parse import named
from unfog.runtime.errors import UserError

Given = Mapping[str, Any]
_UNET: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_scale_factor": (1, 1.0),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default",),
    "class_embed_type": (None,),
}
"""Options of which only these values are supported."""
_PLAIN = {
    **_UNET,
    "mid_block_type": ("UNetMidBlock2D",),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "attn_norm_num_groups": (None,),
    "add_attention": (True,),
}
_CONDITIONAL = {
    **_UNET,
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "dual_cross_attention": (False,),
    "addition_embed_type": (None,),
    "num_class_embeds": (None,),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1, 1.0),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
}
_AUTOENCODER: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
}
LEVELS, WIDEST, DEEPEST = 12, 1 << 14, 64
"""Limits: levels of a network, channels of a level, and blocks or layers per level."""
CLASSES = ("UNet2DModel", "UNet2DConditionModel", "AutoencoderKL")
"""Network classes that can be imported."""


def _check(config: Given, meant: Mapping[str, tuple[Any, ...]], where: str) -> None:
    """Raise a UserError for an option that is not supported."""
    for option, values in meant.items():
        if option in config and config[option] not in values:
            raise UserError(f"{where}: {option}={_short(config[option])} is not supported, only {values[0]!r}")
    widths = config.get("block_out_channels")
    if not isinstance(widths, list) or not all(type(width) is int for width in widths) or not widths:
        raise UserError(f"{where} has no block_out_channels: it is not the configuration of a network")
    if len(widths) > LEVELS or not all(0 < width <= WIDEST for width in widths):
        raise UserError(
            f"{where}: block_out_channels must be at most {LEVELS} numbers from 1 to {WIDEST}, not {_short(widths)}"
        )
    if config.get("time_embedding_dim") not in (None, 4 * widths[0]):
        raise UserError(
            f"{where}: time_embedding_dim={_short(config['time_embedding_dim'])} is not supported, only "
            f"{4 * widths[0]}, 4 times the first of block_out_channels"
        )


def whole(config: Given, name: str, default: int, most: int, where: str) -> int:
    """Return a whole number from 1 to `most` in a configuration.

    Raises: UserError: If it is anything else.
    """
    value = config.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise UserError(f"{where}: {name} must be a whole number from 1 to {most:,}, not {_short(value)}")
    return value


def number(config: Given, name: str, default: float, least: float, most: float, where: str) -> float:
    """Return a number from `least` to `most` in a configuration.

    Raises: UserError: If it is anything else.
    """
    value = config.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{where}: {name} must be a number from {least:g} to {most:g}, not {_short(value)}")
    return float(value)


def flag(config: Given, name: str, default: bool, where: str) -> bool:
    """Return a truth value in a configuration.

    Raises: UserError: If it is anything else.
    """
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise UserError(f"{where}: {name} must be true or false, not {_short(value)}")
    return value


def _short(value: object) -> str:
    """Return a value as text, cut to a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _groups(config: Given, where: str) -> int:
    """Return the groups of the group norms, which divide the channels of each level."""
    groups = whole(config, "norm_num_groups", 32, WIDEST, where)
    for width in config["block_out_channels"]:
        if width % groups:
            raise UserError(f"{where}: norm_num_groups={groups} must divide each of block_out_channels, not {width}")
    return groups


def _levels(config: Given, attending: str, plain: str, where: str) -> list[bool]:
    """Return which levels have attention, from the names of their blocks."""
    down, up = config.get("down_block_types", []), config.get("up_block_types", [])
    known = {f"{attending}DownBlock2D": True, f"{plain}DownBlock2D": False}
    for name in down:
        if name not in known:
            raise UserError(f"{where}: the block {_short(name)} is not supported, only {', '.join(known)}")
    levels = [known[name] for name in down]
    expected = [f"{attending if attends else plain}UpBlock2D" for attends in reversed(levels)]
    if list(up) != expected or len(down) != len(config["block_out_channels"]):
        raise UserError(
            f"{where}: up_block_types must mirror down_block_types, with one for each of block_out_channels"
        )
    return levels


def _each(value: Any, count: int, name: str, where: str) -> list[int]:
    """Return a number for each level."""
    numbers = value if isinstance(value, list) else [value] * count
    if len(numbers) != count or not all(type(one) is int and 0 < one <= WIDEST for one in numbers):
        raise UserError(f"{where}: {name} must be a number above 0, or one for each level, not {_short(value)}")
    return numbers


def _same(value: Any, count: int, name: str, where: str) -> int:
    """Return a number that must be the same for all levels."""
    numbers = set(_each(value, count, name, where))
    if len(numbers) > 1 or max(numbers) > DEEPEST:
        raise UserError(f"{where}: {name} must be the same for all levels and at most {DEEPEST}, not {_short(value)}")
    return numbers.pop()


def _common(config: Given, where: str) -> dict[str, Any]:
    """Return the options shared by both U-Nets."""
    widths = config["block_out_channels"]
    return {
        "widths": widths,
        "blocks": _same(config.get("layers_per_block", 2), len(widths), "layers_per_block", where),
        "dropout": number(config, "dropout", 0.0, 0, 0.99, where),
        "groups": _groups(config, where),
        "epsilon": number(config, "norm_eps", 1e-5, 1e-12, 1, where),
        "pad_behind": number(config, "downsample_padding", 1, 0, 1, where) == 0,
        "time_shift": int(number(config, "freq_shift", 0, 0, 1, where)),
        "sines_first": not flag(config, "flip_sin_to_cos", True, where),
    }


def network(config: Given, where: str) -> NetworkSpec:
    """Return our network with the topology of a diffusers config.json.

    Raises: UserError: For a class or an option that is not supported.
    """
    with meant(where):
        return _network(config, where)


def _network(config: Given, where: str) -> NetworkSpec:
    """Return our network; values are not checked."""
    kind = config.get("_class_name")
    if kind == "UNet2DModel":
        _check(config, _PLAIN, where)
        attends = _levels(config, "Attn", "", where)
        widest = max(config["block_out_channels"])
        alone = config.get("attention_head_dim", 8) is None
        head = widest if alone else whole(config, "attention_head_dim", 8, WIDEST, where)
        unet: NetworkSpec = named("network", "unet", attention=attends, head=head, **_common(config, where))
        return unet
    if kind == "UNet2DConditionModel":
        _check(config, _CONDITIONAL, where)
        attends, count = _levels(config, "CrossAttn", "", where), len(config["block_out_channels"])
        # the second name is wrong in diffusers
        heads = config.get("num_attention_heads")
        heads = config.get("attention_head_dim", 8) if heads is None else heads
        layers = _same(config.get("transformer_layers_per_block", 1), count, "transformer_layers_per_block", where)
        heads_of_levels = _each(heads, count, "attention_head_dim", where)
        options = _common(config, where)
        conditional: NetworkSpec = named(
            "network", "conditional-unet", attention=attends, heads=heads_of_levels, layers=layers, **options
        )
        return conditional
    if kind == "AutoencoderKL":
        _check(config, _AUTOENCODER, where)
        _same_blocks(config, where)
        autoencoder: NetworkSpec = named(
            "network",
            "autoencoder",
            latent=whole(config, "latent_channels", 4, WIDEST, where),
            widths=config["block_out_channels"],
            blocks=_same(config.get("layers_per_block", 1), 1, "layers_per_block", where),
            groups=_groups(config, where),
            attention=flag(config, "mid_block_add_attention", True, where),
            quant=flag(config, "use_quant_conv", True, where),
            post_quant=flag(config, "use_post_quant_conv", True, where),
        )
        return autoencoder
    raise UserError(f"{where}: the class {kind!r} is not supported, only {', '.join(CLASSES)}")


def _same_blocks(config: Given, where: str) -> None:
    """Raise a UserError unless an autoencoder consists of standard blocks."""
    for key, name in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        types = config.get(key, [])
        if any(block != name for block in types) or len(types) != len(config["block_out_channels"]):
            raise UserError(f"{where}: {key} must be {name} for each of block_out_channels, not {_short(types)}")


def config_of(
    made: UNet | ConditionalUNet | Autoencoder, recipe_options: Given, channels: int, side: int
) -> dict[str, Any]:
    """Return the config.json of diffusers for a network of ours.

    Args:
        made: The network.
        recipe_options: Its options in the recipe.
        channels: Channels of its state or images.
        side: Side of its state or images.
    """
    options = dict(recipe_options)
    widths: Sequence[int] = options["widths"]
    plain = {"in_channels": channels, "out_channels": channels, "sample_size": side, "block_out_channels": list(widths)}
    if isinstance(made, Autoencoder):
        return {
            "_class_name": "AutoencoderKL",
            **plain,
            "down_block_types": ["DownEncoderBlock2D"] * len(widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(widths),
            "latent_channels": options["latent"],
            "layers_per_block": options["blocks"],
            "norm_num_groups": options["groups"],
            "mid_block_add_attention": options["attention"],
            "use_quant_conv": True,
            "use_post_quant_conv": True,
            "scaling_factor": 1.0,
        }
    for width in widths:
        if width % options["groups"]:
            raise UserError(
                f"diffusers requires group norms whose {options['groups']} groups divide all widths, but not {width}: "
                "train with network.groups set to a divisor of all widths"
            )
    conditional = isinstance(made, ConditionalUNet)
    prefix = "CrossAttn" if conditional else "Attn"
    config = {
        "_class_name": "UNet2DConditionModel" if conditional else "UNet2DModel",
        **plain,
        "layers_per_block": options["blocks"],
        "dropout": options["dropout"],
        "norm_num_groups": options["groups"],
        "norm_eps": options["epsilon"],
        "downsample_padding": 0 if options["pad_behind"] else 1,
        "freq_shift": options["time_shift"],
        "flip_sin_to_cos": not options["sines_first"],
        "down_block_types": [f"{prefix if attends else ''}DownBlock2D" for attends in options["attention"]],
        "up_block_types": [f"{prefix if attends else ''}UpBlock2D" for attends in reversed(options["attention"])],
    }
    if conditional:
        context = made.get_parameter("middle.0.cross.layers.0.kv.weight").shape[1]
        layers = {"transformer_layers_per_block": options["layers"], "use_linear_projection": True}
        return {**config, **layers, "attention_head_dim": list(options["heads"]), "cross_attention_dim": context}
    return {**config, "attention_head_dim": options["head"]}
