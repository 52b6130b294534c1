"""Conditioning on text through a frozen pretrained encoder, CLIP or T5, as latent diffusion models use it."""

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unfog.data.source import Batch
from unfog.networks.conditioning import Cond, Embedder
from unfog.recipes.conditions import Asked, Known, WithNull, captions, each
from unfog.runtime.errors import UserError
from unfog.runtime.files import parse_json, read_bounded
from unfog.runtime.hub import cached, downloaded, is_name

ENCODERS = {"clip_text_model": "CLIPTextModel", "clip": "CLIPTextModel", "t5": "T5EncoderModel"}
"""Classes of the library transformers, by the `model_type` of a config."""
MASKED = {"t5"}
"""Encoders whose padding tokens are masked for the network."""
SIZES = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "d_model", "d_kv", "d_ff"), 1 << 16),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_layers", "num_heads"), 256),
    **dict.fromkeys(("max_position_embeddings", "projection_dim"), 1 << 16),
    "vocab_size": 1 << 22,
}
"""The largest sizes in the config of an encoder."""
CLOSED = {"trust_remote_code": False, "local_files_only": True}
"""Arguments of every `from_pretrained`: a folder, or the path in a recipe, may be a stranger's."""
REMEMBERED = 2048
"""Prompts whose tokens are cached."""
LONGEST = 512
"""Tokens of a prompt, at most, where neither tokenizer nor encoder has a limit of its own."""


class Encoder:
    """A text encoder with its tokenizer; the tokens of a prompt are computed once."""

    def __init__(self, where: str, length: int | None) -> None:
        """Load both.

        Args:
            where: A folder or a name on the hub, with subfolders text_encoder and tokenizer, or with both in one.
            length: Tokens of a prompt; None is the tokenizer's limit.

        Raises: UserError: If there is none, it is of an unknown kind, or transformers is not installed.
        """
        self.where, self.known = where, _kind(where)
        transformers = _transformers()
        kind = self.known[0]
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(**_part(where, "tokenizer"), **CLOSED)
            made = getattr(transformers, ENCODERS[kind])
            where_from = {**_part(where, "text_encoder"), **CLOSED}
            self.network: nn.Module = made.from_pretrained(**where_from, use_safetensors=True)
        except Exception as error:  # whatever it is: the folder is not what that library expects
            raise UserError(f"the text encoder in {where} cannot be loaded: {_first_line(error)}") from error
        if len(self.tokenizer) < 3:
            raise UserError(f"the tokenizer in {where} has no vocabulary: restore its tokenizer.json, or vocab.json")
        self.network.eval().requires_grad_(False)
        if torch.cuda.is_available():
            self.network.cuda()
        most = _positions(self.network)
        if length and most and length > most:
            raise UserError(f"the text encoder in {where} takes {most} tokens: set conditioning.length to at most that")
        limits = [limit for limit in (self.tokenizer.model_max_length, most) if isinstance(limit, int) and limit > 0]
        self.length = length or min([*limits, LONGEST])
        self.masked = kind in MASKED
        self._tokens = lru_cache(maxsize=REMEMBERED)(self._compute)

    def __call__(self, prompts: list[str]) -> Tensor:
        """Return the tokens of prompts, `(batch, length, width)`; zeros in place of padding."""
        return torch.stack([self._tokens(prompt) for prompt in prompts])

    @torch.no_grad()
    def _compute(self, prompt: str) -> Tensor:
        """Return the tokens of one prompt, `(length, width)`, on the CPU."""
        words = self.tokenizer(
            prompt, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        device = next(self.network.parameters()).device
        mask = words["attention_mask"].to(device)
        with torch.autocast(device.type, enabled=False):
            found = self.network(words["input_ids"].to(device), attention_mask=mask if self.masked else None)[0]
        tokens: Tensor = found[0].float().cpu()
        return tokens * mask[0, :, None].cpu() if self.masked else tokens


@lru_cache(maxsize=2)
def encoder(where: str, length: int | None) -> Encoder:
    """Return the encoder of a folder, loaded once."""
    return Encoder(where, length)


def _positions(network: Any) -> int | None:
    """Return the most tokens that an encoder takes: CLIP has a vector for each position, T5 has none."""
    most = getattr(network.config, "max_position_embeddings", None)
    return most if isinstance(most, int) else None


def installed() -> bool:
    """Return whether transformers is installed."""
    try:
        _transformers()
    except UserError:
        return False
    return True


def _transformers() -> Any:
    """Return the library transformers.

    Raises: UserError: If it is not installed.
    """
    try:
        return import_module("transformers")
    except ImportError:
        raise UserError(
            "conditioning=pretrained needs transformers: pip install 'unfog[text]', or use conditioning=text"
        ) from None


def _part(where: str, part: str) -> dict[str, str]:
    """Return the location of a part as arguments of `from_pretrained`: always a folder, see `_folder`."""
    folder = _folder(where)
    return {"pretrained_model_name_or_path": str(folder / part if (folder / part).is_dir() else folder)}


def _folder(where: str) -> Path:
    """Return the folder of an encoder, which for a name is that in the hub's cache.

    transformers is never given a name, with which it calls the network even if that is forbidden.

    Raises: UserError: If there is none.
    """
    if not where:
        raise UserError("conditioning=pretrained needs an encoder: set conditioning.path to its folder or hub name")
    folder = Path(where) if Path(where).is_dir() else cached(where) if is_name(where) else None
    if folder is None:
        cure = f", or fetch it first with `hf download {where}`" if is_name(where) else ""
        raise UserError(
            f"there is no text encoder {where!r} on this machine, and a recipe downloads nothing by itself: set "
            f"conditioning.path to a folder{cure}"
        )
    return folder


@lru_cache(maxsize=8)
def _kind(where: str) -> tuple[str, int]:
    """Return the model type of an encoder and the entries of a token, from its config."""
    file = Path(_part(where, "text_encoder")["pretrained_model_name_or_path"]) / "config.json"
    if not file.is_file():
        raise UserError(f"{where} holds no text encoder (no config.json in it or in its text_encoder)")
    try:
        found: Any = parse_json(read_bounded(file))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{where} holds no text encoder: its config.json is not a JSON object")
    kind = found.get("model_type")
    text = found.get("text_config")
    inner: dict[str, Any] = text if isinstance(text, dict) else found
    width = inner.get("hidden_size", inner.get("d_model"))
    if kind not in ENCODERS or not isinstance(width, int):
        supported = ", ".join(dict.fromkeys(ENCODERS.values()))
        raise UserError(f"{where} is an encoder of the kind {kind!r}, which is not supported: there are {supported}")
    for name, most in SIZES.items():
        size = inner.get(name, 1)
        if type(size) is not int or not 0 < size <= most:
            raise UserError(f"{file}: {name} must be a whole number from 1 to {most:,}, not {repr(size)[:40]}")
    return kind, width


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


class TokensEmbedding(nn.Module):
    """Passes tokens on as a condition; a dropped condition is the tokens of the empty prompt."""

    def __init__(self, where: str, length: int | None) -> None:
        """Use the encoder of a folder."""
        super().__init__()
        self.where, self.length = where, length

    def forward(self, condition: Tensor, drop: Tensor | None = None) -> Cond:
        """Return tokens, `(batch, length, width)`, as a condition."""
        tokens = condition
        if drop is not None:
            tokens = torch.where(drop[:, None, None], self._empty().to(tokens), tokens)
        return Cond(tokens=tokens, mask=self._mask(tokens))

    def null(self, batch: int) -> Cond:
        """Return the dropped condition, the empty prompt, for a batch."""
        tokens = self._empty().expand(batch, -1, -1)
        return Cond(tokens=tokens, mask=self._mask(tokens))

    def _mask(self, tokens: Tensor) -> Tensor | None:
        """Return the mask of the tokens that are not padding, or None."""
        return (tokens != 0).any(-1) if encoder(self.where, self.length).masked else None

    def _empty(self) -> Tensor:
        """Return the tokens of the empty prompt, `(1, length, width)`."""
        return encoder(self.where, self.length)([""])


@dataclass(frozen=True)
class PretrainedConditioning(WithNull):
    """Conditions on text through a pretrained encoder, CLIP or T5, which is copied into the run folder.

    Attributes:
        path: The encoder's folder, or its name on the hub.
        length: Tokens of a prompt; None is the tokenizer's limit.

    Source: Radford et al. 2021, CLIP; Raffel et al. 2020, T5; Rombach et al. 2022, section 3.3.
    """

    captioned: ClassVar[bool] = True
    path: str = ""
    length: int | None = None

    @property
    def context(self) -> int:  # type: ignore[override]  # read from the encoder here, a constant elsewhere
        """Entries of a token."""
        return _kind(self.path)[1]

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return the embedder, which passes the tokens on."""
        return TokensEmbedding(self.path, self.length)

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return the tokens of the captions, `(batch, length, width)`."""
        return encoder(self.path, self.length)(captions(batch, known.classes))

    def ask(self, known: Known, asked: Asked, count: int) -> Tensor | None:
        """Return the tokens of the prompts; without a request, of the known prompts in turn."""
        if asked is None:
            asked = [known.prompts[place % len(known.prompts)] if known.prompts else "" for place in range(count)]
        return encoder(self.path, self.length)(each(asked, count, (str,)))


def fetch_encoder(where: str) -> None:
    """Download an encoder into the hub's cache, if it is a name there: for a name that the user typed.

    Raises: UserError: If there is none.
        EnvironmentFailure: If the download fails.
    """
    if not Path(where).exists() and is_name(where):
        downloaded(where)


def copy_encoder(where: str, folder: Path) -> None:
    """Write an encoder and its tokenizer into a folder, in the layout of diffusers.

    Raises: UserError: If it cannot be loaded.
    """
    found: Any = encoder(where, None)
    found.network.save_pretrained(folder / "text_encoder")
    found.tokenizer.save_pretrained(folder / "tokenizer")
