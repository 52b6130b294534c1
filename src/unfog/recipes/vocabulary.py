"""What people call settings: short names that are taken, and other words, which lead to the setting that is meant."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping

from unfog.recipes.kinds import KINDS, class_of, options_of
from unfog.runtime.errors import UserError

SHORT = {
    "lr": "optimizer.lr",
    "warmup": "optimizer.warmup",
    "weight_decay": "optimizer.weight_decay",
    "batch": "training.batch",
    "images": "training.images",
    "precision": "training.precision",
    "reports": "training.reports",
    "width": "network.width",
    "flip": "augment.flip",
    "guidance": "sampling.guidance",
}
"""Short names that `set` takes for the long ones, which is what `recipe.json` holds."""
RESERVED = {"conditioning.from": "conditioning.small"}
"""Names that Python keeps for itself, by those of the options that they are."""
STEPS = ("sampling.steps", "training.images", "schedule.steps")
DROPOUT = ("network.dropout", "conditioning.dropout")
OTHERS: dict[str, tuple[str, ...]] = {
    "learning_rate": ("optimizer.lr",),
    "max_lr": ("optimizer.lr",),
    "wd": ("optimizer.weight_decay",),
    "betas": ("optimizer.beta1", "optimizer.beta2"),
    "warmup_steps": ("optimizer.warmup",),
    "lr_warmup_steps": ("optimizer.warmup",),
    "lr_scheduler": ("optimizer.decay", "optimizer.warmup"),
    "lr_decay": ("optimizer.decay",),
    "clip": ("optimizer.clip", "sampling.clip"),
    "grad_clip": ("optimizer.clip",),
    "gradient_clip": ("optimizer.clip",),
    "max_grad_norm": ("optimizer.clip",),
    "batch_size": ("training.batch",),
    "train_batch_size": ("training.batch",),
    "accumulation": ("training.accumulate",),
    "grad_accum": ("training.accumulate",),
    "gradient_accumulation": ("training.accumulate",),
    "gradient_accumulation_steps": ("training.accumulate",),
    "epochs": ("training.epochs",),
    "num_epochs": ("training.epochs",),
    "iterations": ("training.images",),
    "iters": ("training.images",),
    "max_steps": ("training.images",),
    "train_steps": ("training.images",),
    "max_train_steps": ("training.images",),
    "num_train_steps": ("training.images",),
    "steps": STEPS,
    "num_steps": STEPS,
    "timesteps": ("schedule.steps", "sampling.steps"),
    "num_timesteps": ("schedule.steps", "sampling.steps"),
    "num_train_timesteps": ("schedule.steps",),
    "sampling_steps": ("sampling.steps",),
    "inference_steps": ("sampling.steps",),
    "num_inference_steps": ("sampling.steps",),
    "nfe": ("sampling.steps",),
    "cfg": ("sampling.guidance",),
    "cfg_scale": ("sampling.guidance",),
    "guidance_scale": ("sampling.guidance",),
    "scale": ("sampling.guidance",),
    "dropout": DROPOUT,
    "drop": DROPOUT,
    "p_uncond": ("conditioning.dropout",),
    "cond_drop": ("conditioning.dropout",),
    "cond_dropout": ("conditioning.dropout",),
    "class_dropout": ("conditioning.dropout",),
    "cfg_dropout": ("conditioning.dropout",),
    "dim": ("network.width", "network.widths"),
    "channels": ("network.width", "network.widths", "data.channels"),
    "base_channels": ("network.width", "network.widths"),
    "model_channels": ("network.width", "network.widths"),
    "hidden": ("network.width", "network.widths"),
    "hidden_size": ("network.width", "network.widths"),
    "width": ("network.width", "network.widths"),
    "channel_mult": ("network.widths",),
    "depth": ("network.depth", "network.blocks"),
    "layers": ("network.depth", "network.blocks", "network.layers", "conditioning.layers"),
    "num_layers": ("network.depth", "network.blocks", "network.layers"),
    "res_blocks": ("network.blocks",),
    "num_res_blocks": ("network.blocks",),
    "heads": ("network.heads", "network.head"),
    "num_heads": ("network.heads", "network.head"),
    "patch_size": ("network.patch",),
    "model": ("network",),
    "arch": ("network",),
    "architecture": ("network",),
    "backbone": ("network",),
    "unet": ("network",),
    "ema_decay": ("ema.half_life", "ema.gamma"),
    "ema_rate": ("ema.half_life", "ema.gamma"),
    "ema_beta": ("ema.half_life", "ema.gamma"),
    "decay": ("optimizer.decay", "optimizer.weight_decay", "ema.half_life", "ema.gamma"),
    "fp16": ("training.precision",),
    "bf16": ("training.precision",),
    "amp": ("training.precision",),
    "dtype": ("training.precision",),
    "mixed_precision": ("training.precision",),
    "grad_checkpointing": ("training.gradient_checkpointing",),
    "save_every": ("training.checkpoint_minutes", "training.reports"),
    "checkpoint_every": ("training.checkpoint_minutes",),
    "log_every": ("training.reports",),
    "eval_every": ("training.reports",),
    "sample_every": ("training.reports",),
    "hflip": ("augment.flip",),
    "horizontal_flip": ("augment.flip",),
    "random_flip": ("augment.flip",),
    "mirror": ("augment.flip",),
    "augmentation": ("augment",),
    "dataset": ("data",),
    "dataset_path": ("data.path",),
    "data_dir": ("data.path",),
    "size": ("data.size", "data.side"),
    "image_size": ("data.size", "data.side"),
    "img_size": ("data.size", "data.side"),
    "resolution": ("data.size", "data.side"),
    "num_workers": ("data.workers",),
    "val_split": ("data.heldout",),
    "holdout": ("data.heldout",),
    "vae": ("codec",),
    "latent": ("codec",),
    "scheduler": ("solver", "schedule"),
    "sampler": ("solver",),
    "noise_schedule": ("schedule",),
    "beta_schedule": ("schedule",),
    "prediction_type": ("target",),
    "parameterization": ("target",),
    "prediction": ("target",),
    "loss": ("weighting", "objective"),
    "loss_type": ("weighting", "objective"),
    "loss_weighting": ("weighting",),
    "snr_gamma": ("weighting",),
    "min_snr_gamma": ("weighting",),
    "text_encoder": ("conditioning.path", "conditioning"),
    "cond": ("conditioning",),
    "condition": ("conditioning",),
    "random_seed": ("seed",),
    "optim": ("optimizer",),
}
"""What other toolkits call settings: the settings that may be meant, the likeliest first."""
MOST = 3
"""Suggestions, at most."""


def path_of(setting: str) -> str:
    """Return the full path of what a setting `path=value` sets, whose path may be a short name."""
    path = setting.partition("=")[0].strip()
    return SHORT.get(path) or RESERVED.get(path, path)


def unknown_setting(path: str, meanings: Mapping[str, str], kinds: Mapping[str, str]) -> UserError:
    """Return the error for a setting that a recipe does not have: which ones may be meant, and what those do.

    Args:
        path: What the user wrote.
        meanings: What each setting of the recipe does, by its path.
        kinds: The kind of each part of the recipe.
    """
    what = f"unknown setting {path!r}"
    part = path.partition(".")[0]
    if near := nearest(path, meanings):
        offers = " or ".join(f"{one!r}{_gloss(meanings[one])}" for one in near[:MOST])
        part = part if part in kinds else near[0].partition(".")[0]
        own = _options(part, meanings)
        rest = f" {part} has {own}; `unfog recipe` explains them." if own else ""
        return UserError(f"{what}: did you mean {offers}?{rest}")
    if (place := _other_kind(path)) is not None:
        name, option, others = place
        sets = f"{name}={', '.join(others[:-1])} or {others[-1]}" if others[1:] else f"{name}={others[0]}"
        own = _options(name, meanings)
        has = f"{name}={kinds[name]}, " + (f"whose options are {own}" if own else "which has no options")
        return UserError(f"{what}: {option} is an option of {sets}, but this recipe has {has}")
    groups = ", ".join(f"{one} ({own})" if (own := _options(one, meanings)) else one for one in ("seed", *kinds))
    return UserError(f"{what}: the settings are {groups}; `unfog recipe` explains them")


def _options(part: str, known: Iterable[str]) -> str:
    """Return the options of a part, in words."""
    return ", ".join(one.partition(".")[2] for one in known if one.startswith(f"{part}."))


def _gloss(meaning: str) -> str:
    """Return the first clause of what a setting does, in brackets."""
    clause = re.split(r"[.;:] ", meaning)[0].strip().rstrip(".")
    return f" ({clause[0].lower()}{clause[1:]})" if clause else ""


def nearest(path: str, known: Collection[str]) -> list[str]:
    """Return the settings that are nearest by meaning to a word, or else by spelling, the likeliest first."""
    plain = path.lower().replace("-", "_").strip(". ")
    part, _, last = plain.rpartition(".")
    if part and (of_part := difflib.get_close_matches(part, KINDS, 1, 0.6)):
        inside = [one for one in known if one.startswith(f"{of_part[0]}.")]
        if found := _meant(last, inside):
            return found[:1]
        if _other_kind(path) is None and (found := _spelt(last, inside, 0.6)):
            return found[:1]
    elsewhere = _other_kind(path) is not None
    if found := [] if part in KINDS and elsewhere else _meant(last, known):
        return found
    return [] if elsewhere else _spelt(last, known, 0.75) or difflib.get_close_matches(plain, sorted(known), 1, 0.6)


def _meant(word: str, known: Collection[str]) -> list[str]:
    """Return the settings that a word names: as other toolkits do, or as an option of whatever part."""
    named = [one for one in OTHERS.get(word, ()) if one in known]
    short = [SHORT[word]] if SHORT.get(word) in known else []
    return named or short or [one for one in known if one.rpartition(".")[2] == word]


def _spelt(word: str, known: Collection[str], cutoff: float) -> list[str]:
    """Return the settings that the word nearest in spelling names."""
    words = {one.rpartition(".")[2] for one in known} | {one for one in OTHERS if _meant(one, known)}
    near = difflib.get_close_matches(word, sorted(words), 1, cutoff)
    return _meant(near[0], known) if near else []


def _other_kind(path: str) -> tuple[str, str, list[str]] | None:
    """Return part, option and kinds where a setting is an option of kinds other than the recipe's."""
    part, _, last = path.lower().replace("-", "_").rpartition(".")
    meant = [*OTHERS.get(last, ()), *(f"{name}.{last}" for name in KINDS)]
    for name, _, option in (one.partition(".") for one in meant):
        if option and part in ("", name):
            others = [kind for kind in KINDS[name] if option in options_of(class_of(name, kind))]
            if others:
                return name, option, others
    return None
