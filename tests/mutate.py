"""Broken inputs, made from good ones. Each function takes what is good and a seeded random source, and nothing else."""

import gzip
import io
import json
import random
import struct
import tarfile
import zlib
from contextlib import suppress
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from unfog.recipes.kinds import KINDS
from unfog.recipes.parse import named, to_plain

NUMBERS: tuple[float, ...] = (
    *(0, 1, -1, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63)),
    *(10**9, 10**12, 10**12 + 1, 10**18, 10**30, 10**400, -(10**9), -(10**12)),
    *(0.5, -0.5, 1e-3, 1e3, 1e12, 1e30, 1e39, 1e308, -1e308, 1e-30, 1e-308, 5e-324),
    *(float("nan"), float("inf"), float("-inf")),
)
"""Numbers at and beyond the ends of what machines count with."""
ODDITIES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        "",
        "x",
        "\0",
        "\ud800",
        "\x1b[2J",
        "NaN",
        "1",
        "$x",
        "[/b]",
        "../../sentinel/file",
        "/etc/passwd",
    ),
    *([], [[]], [None], [0, 1], [1e308, -1e308], {}, {"kind": "os.system"}, {"kind": "shifted", "base": "shifted"}),
)
"""Values of other types, and names that lead elsewhere."""
SIZES = (0, 1, 2**8, 2**15, 2**16 - 1, 2**20, 2**31 - 1, 2**32 - 1)
"""Sides and counts that a binary head may claim."""

TYPES = ("BOOL", "U8", "I8", "I16", "F16", "BF16", "I32", "F64", "I64", "U64", "F8_E4M3", "F8_E5M2", "F4", "C64", "X")
"""Types of tensors in a file of weights, and none."""


def mutate_bytes(good: bytes, draw: random.Random, first: int = 400) -> bytes:
    """Flip bits, cut, insert, swap, repeat or overwrite with extreme numbers, mostly in the `first` bytes."""
    raw = bytearray(good)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        size = len(raw)
        if not size:
            return draw.randbytes(draw.choice((0, 1, 100)))
        place = draw.randrange(min(size, first) if draw.random() < 0.7 else size)
        other, length = draw.randrange(size), draw.choice((1, 2, 4, 8, 64, 1000))
        match draw.randrange(9):
            case 0:
                raw[place] ^= 1 << draw.randrange(8)
            case 1:
                raw[place] = draw.choice((0, 1, 127, 128, 255))
            case 2:
                del raw[place:]
            case 3:
                del raw[place : place + length]
            case 4:
                raw[place:place] = draw.choice((bytes(length), b"\xff" * length, draw.randbytes(length)))
            case 5:
                raw[place : place + length], raw[other : other + length] = (
                    raw[other : other + length],
                    raw[place : place + length],
                )
            case 6:
                raw[place:place] = raw[other : other + length]
            case 7:
                kind = draw.choice(["<I", ">I", "<H", ">H", "<Q", ">Q", "<f", "<d"])
                number = draw.choice(SIZES) % 2 ** (8 * struct.calcsize(kind))
                packed = struct.pack(kind, draw.choice((0.0, 1e38, float("nan"))) if kind[1] in "fd" else number)
                raw[place : place + len(packed)] = packed
            case 8:
                raw += draw.choice((b"\0", bytes(5000), bytes(raw)))
    return bytes(raw)


# ------------------------------------------------------------------------------------------------- JSON


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value inside a value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def mutate_json(good: str, draw: random.Random) -> bytes:
    """Replace, remove, repeat, swap, deepen or lengthen values of a JSON text, or damage the text itself."""
    if draw.random() < 0.2:
        return mutate_bytes(good.encode(), draw, len(good))
    value = json.loads(good)
    deep = ""
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        places = _places(value)
        if not places:
            break
        numbers = [(holder, key) for holder, key in places if type(holder[key]) in (int, float)]
        holder, key = draw.choice(numbers if numbers and draw.random() < 0.5 else places)
        match draw.randrange(12):
            case 0 | 1 | 2 | 3:
                holder[key] = draw.choice(NUMBERS)
            case 4 | 5:
                holder[key] = deepcopy(draw.choice(ODDITIES))
            case 6:
                del holder[key]
            case 7:
                other, second = draw.choice(places)
                try:
                    holder[key], other[second] = other[second], holder[key]
                    json.dumps(value)
                except ValueError:  # a value inside itself
                    return b"[" * draw.choice((10, 10_000))
            case 8 if isinstance(holder, dict):
                holder[draw.choice(("stranger", "", "kind", "__class__"))] = draw.choice(NUMBERS)
            case 8:
                holder.append(deepcopy(draw.choice((*NUMBERS, *ODDITIES))))
            case 9:
                deep = "deep" + str(draw.randrange(10**9))
                holder[key] = deep
            case 10:
                holder[key] = draw.choice(
                    ("a" * 100_000, [0] * 200_000, ["x"] * 30_000, {str(one): one for one in range(9999)})
                )
            case 11 if isinstance(value, dict):
                name = draw.choice(list(value) or ["x"])
                return f"{json.dumps(value)[:-1]}, {json.dumps(name)}: {json.dumps(draw.choice(NUMBERS))}}}".encode()
    text = json.dumps(value)
    depth = draw.choice((3, 40, 500, 100_000))
    return text.replace(f'"{deep}"', "[" * depth + "]" * depth).encode() if deep else text.encode()


def mutate_recipe(good: str, draw: random.Random) -> bytes:
    """Mutate a recipe, often after another kind was chosen for a field, and numbers for its options."""
    if draw.random() < 0.5:
        return mutate_json(good, draw)
    plain = json.loads(good)
    for _ in range(draw.choice((1, 2))):
        field = draw.choice(sorted(set(KINDS) - {"data"}))
        options = to_plain(field, named(field, draw.choice(sorted(set(KINDS[field]) - {"table", "times"}))))
        for name in options:
            if name != "kind" and draw.random() < 0.3:
                options[name] = draw.choice((*NUMBERS, *ODDITIES))
        plain[field] = options
    return json.dumps(plain).encode()


def mutate_lines(good: bytes, draw: random.Random) -> bytes:
    """Mutate a line of JSON lines, repeat or mix lines, or damage the text."""
    if draw.random() < 0.2:
        return mutate_bytes(good, draw, len(good))
    lines = good.splitlines()
    for _ in range(draw.choice((1, 1, 3))):
        place = draw.randrange(len(lines))
        with suppress(ValueError, RecursionError):  # broken before
            lines[place] = mutate_json(lines[place].decode(), draw)
    if draw.random() < 0.2:
        lines = [*lines, *lines[: draw.randrange(len(lines))], draw.choice((b"", b"{}", b"null", b"[" * 3000))]
    return draw.choice((b"\n", b"\n", b"\r\n", b"\n\n")).join(lines)


# ------------------------------------------------------------------------------------------- safetensors


def mutate_safetensors(good: bytes, draw: random.Random) -> bytes:
    """Mutate the head (names, types, shapes, places, its length), the numbers, or any byte."""
    (length,) = struct.unpack("<Q", good[:8])
    text, body = good[8 : 8 + length], bytearray(good[8 + length :])
    head: dict[str, Any] = json.loads(text)
    names = [name for name in head if name != "__metadata__"]
    one, other = head[draw.choice(names)], head[draw.choice(names)]
    match draw.randrange(10):
        case 0:
            return mutate_bytes(good, draw)
        case 1:
            wrong = draw.choice((0, 1, length - 1, length + 1, len(good), 2**31, 2**63, 2**64 - 1, 100_000_001))
            return struct.pack("<Q", wrong) + good[8:]
        case 2:
            one["shape"] = draw.choice(([10**12], [10**6, 10**6], [2**62, 4], [-1], [0], [], [1.5], one["shape"][::-1]))
        case 3:
            one["dtype"] = draw.choice(
                [
                    "BOOL",
                    "U8",
                    "I8",
                    "I16",
                    "F16",
                    "BF16",
                    "I32",
                    "F64",
                    "I64",
                    "U64",
                    "F8_E4M3",
                    "F8_E5M2",
                    "F4",
                    "C64",
                    "X",
                ]
            )
        case 4:
            one["data_offsets"] = draw.choice(
                (other["data_offsets"], [0, 10**12], [5, 1], [-4, 0], [0, len(body)], [0])
            )
        case 5:
            head[draw.choice(("stranger", "", "a:b", "weights/x", "optimizer/x", "x" * 3000))] = head.pop(
                draw.choice(names)
            )
        case 6:
            end = len(body)
            head["stranger"] = {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}
            body += b"\0\0\0\0"
        case 7:
            one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]
        case 8:
            place = draw.randrange(0, len(body) - 8, 4)
            body[place : place + 4] = struct.pack("<f", draw.choice((float("nan"), float("inf"), 3e38, 1e-40)))
        case 9:
            text = mutate_json(text.decode(), draw)
            return struct.pack("<Q", len(text)) + text + body
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + body


# ---------------------------------------------------------------------------------------------- pictures


def good_picture(kind: str, draw: random.Random) -> bytes:
    """Return a small picture of a format and mode such as `png RGBA`, of random pixels."""
    suffix, mode = kind.split()
    pixels = np.frombuffer(draw.randbytes(8 * 8 * 4), np.uint8).reshape(8, 8, 4)
    picture = Image.fromarray(pixels, "RGBA").convert("RGB") if mode != "RGBA" else Image.fromarray(pixels, "RGBA")
    if mode in ("I;16", "F"):
        sixteen = np.frombuffer(draw.randbytes(128), np.uint16).reshape(8, 8)
        picture = Image.fromarray(sixteen if mode == "I;16" else sixteen.astype(np.float32) / 65535)
    elif mode == "animated":
        picture = picture.convert("P") if suffix == "gif" else picture
    else:
        picture = picture.convert(mode)
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": [picture.rotate(90)], "duration": 50} if mode == "animated" else {}
    exif = Image.Exif()
    exif[0x0112] = draw.randrange(9)
    if suffix in ("png", "jpg", "webp", "tif"):
        more["exif"] = exif
    picture.save(buffer, format=Image.registered_extensions()[f".{suffix}"], **more)
    return buffer.getvalue()


PICTURES = (
    *("png L", "png RGB", "png RGBA", "png P", "png 1", "png I;16", "png animated", "jpg L", "jpg RGB", "jpg CMYK"),
    *("gif P", "gif animated", "webp RGB", "webp RGBA", "webp animated", "bmp RGB", "bmp P", "tif RGB", "tif CMYK"),
    *("tif I;16", "tif F", "ppm RGB", "ppm L"),
)
"""Formats and modes of good pictures."""


@cache
def bomb(side: int) -> bytes:
    """Return a small PNG of side² pixels, all of them really there."""
    row = bytes(1 + -(-side // 8))
    packer, packed = zlib.compressobj(1), []
    packed += [packer.compress(row) for _ in range(side)]
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return _png([(b"IHDR", head), (b"IDAT", b"".join(packed) + packer.flush()), (b"IEND", b"")])


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Return a PNG of chunks, with their right checksums."""
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunks(good: bytes) -> list[tuple[bytes, bytes]]:
    """Return the chunks of a good PNG."""
    found, place = [], 8
    while place < len(good):
        (length,) = struct.unpack(">I", good[place : place + 4])
        found.append((good[place + 4 : place + 8], good[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def mutate_png(good: bytes, draw: random.Random) -> bytes:
    """Mutate chunks of a PNG whose checksums stay right."""
    chunks = _chunks(good)
    place, other = draw.randrange(len(chunks)), draw.randrange(len(chunks))
    name, data = chunks[place]
    match draw.randrange(6):
        case 0 | 1:
            fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
            for _ in range(draw.choice((1, 2))):
                field = draw.randrange(7)
                fields[field] = draw.choice(SIZES if field < 2 else (0, 1, 2, 3, 4, 6, 7, 8, 16, 255))
            chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *fields))
        case 2:
            chunks[place] = (name, mutate_bytes(data, draw))
        case 3:
            chunks[place], chunks[other] = chunks[other], chunks[place]
        case 4:
            del chunks[place]
        case 5:
            extra = draw.choice(
                (b"tRNS", b"PLTE", b"acTL", b"fcTL", b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"gAMA", b"IEND")
            )
            stuff = draw.choice((b"", bytes(6), draw.randbytes(40), b"x\0\0" + zlib.compress(bytes(1 << 22))))
            chunks.insert(draw.randrange(len(chunks) + 1), (extra, stuff))
    return _png(chunks)


def mutate_picture(draw: random.Random) -> tuple[str, bytes]:
    """Return the suffix and the bytes of a broken picture, or of something else under a picture's name."""
    kind = draw.choice(PICTURES)
    good, suffix = good_picture(kind, draw), kind.split()[0]
    chance = draw.random()
    if chance < 0.06:
        return "png", bomb(draw.choice((10_000, 20_000)))
    if chance < 0.12:
        other = (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>", b"PK\3\4", b"", bytes(5000))
        return suffix, draw.choice(other)
    if chance < 0.15:
        return draw.choice(("png", "jpg", "gif", "npy")), good
    if suffix == "png" and chance < 0.6:
        return suffix, mutate_png(good, draw)
    return suffix, mutate_bytes(good, draw, 150)


def mutate_array(draw: random.Random) -> bytes:
    """Return a broken `.npy` file: a head of absurd shapes and types, or damaged bytes."""
    buffer = io.BytesIO()
    np.save(buffer, np.frombuffer(draw.randbytes(192), np.uint8).reshape(8, 8, 3))
    if draw.random() < 0.4:
        return mutate_bytes(buffer.getvalue(), draw, 128)
    shapes = (
        "(8, 8)",
        "(8, 8, 3)",
        "(0, 8)",
        "(10**6,)",
        "(1000000, 1000000)",
        "(4611686018427387904, 8)",
        "(-8, 8)",
        "()",
    )
    more = ("(1, 1, 1000000)", "(8, 8, 8, 8)", "(8.5, 8)", "(True, 8)", "'8'", "((((((8))))))", "(1000000000000, 1, 3)")
    kinds = ("|u1", "<u2", ">u2", "<f4", "<f8", "<f2", "<i8", "|O", "<c8", "|b1", "<M8[s]", "|V3", "|S5", "<U9", "bad")
    shape, kind = draw.choice((*shapes, *more)), draw.choice(kinds)
    order = draw.choice(("True", "False", "None"))
    head = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    size = draw.choice((0, 64, 192, 192 * 8))
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head + draw.choice((bytes(size), draw.randbytes(size)))


# ------------------------------------------------------------------------------------------ classic sets


def mutate_idx(good: bytes, draw: random.Random) -> bytes:
    """Mutate the head of an idx file, mostly its sizes, or any byte."""
    if draw.random() < 0.4:
        return mutate_bytes(good, draw, 16)
    axes = good[3]
    sizes = list(struct.unpack(f">{axes}I", good[4 : 4 + 4 * axes]))
    sizes[draw.randrange(axes)] = draw.choice((*SIZES, sizes[0] - 1, sizes[0] + 1))
    if draw.random() < 0.2:
        sizes = draw.choice(([], sizes[::-1], [*sizes, 1], [2**30], [2**16, 2**16, 2**16], sizes[:1]))
    return good[:3] + bytes([len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + good[4 + 4 * axes :]


@cache
def gzip_bomb(megabytes: int) -> bytes:
    """Return a packed idx file whose head claims 2^20 pictures of 32×32, with so many megabytes of zeros."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    parts = [packer.compress(b"\0\0\x08\3" + struct.pack(">III", 2**20, 32, 32))]
    parts += [packer.compress(bytes(1 << 20)) for _ in range(megabytes)]
    return b"".join(parts) + packer.flush()


def mutate_packed(good: bytes, draw: random.Random) -> bytes:
    """Mutate a file before or after it is packed with gzip, or return a bomb."""
    match draw.randrange(5):
        case 0:
            return mutate_bytes(gzip.compress(good, mtime=0), draw, 20)
        case 1:
            return gzip.compress(good, mtime=0) + draw.choice((gzip.compress(good, mtime=0), b"garbage", bytes(100)))
        case 2:
            return gzip_bomb(64)
    return gzip.compress(mutate_idx(good, draw), mtime=0)


def mutate_archive(files: dict[str, bytes], draw: random.Random) -> bytes:
    """Return a packed archive of files with members that lead elsewhere, claim too much or are damaged."""
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=draw.choice((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT))
    ) as archive:
        for name, data in files.items():
            if draw.random() < 0.1:
                continue
            member = tarfile.TarInfo(
                draw.choice((name, name, name, f"../../sentinel/{name}", f"/tmp/{name}", "a/../../x"))
            )
            member.size = len(data)
            if draw.random() < 0.2:
                member.type = draw.choice(
                    (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
                )
                member.linkname, member.size = draw.choice(("../../sentinel/file", "/etc/passwd", name)), 0
            archive.addfile(member, io.BytesIO(data))
    raw = buffer.getvalue()
    if draw.random() < 0.5:
        raw = mutate_bytes(raw, draw, len(raw))
    return mutate_bytes(gzip.compress(raw, mtime=0), draw) if draw.random() < 0.3 else gzip.compress(raw, mtime=0)
