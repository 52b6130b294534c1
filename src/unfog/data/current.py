"""The present rules by which a folder is listed: what is common is read, and what is not used is said.

Metadata decide where there are any; else captions and labels lie beside the pictures, and two or more sub-folders are
the classes. `train/` above them is seen through, and `val/` beside it is what is held out.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from unfog.data import labels
from unfog.data.classic import existing
from unfog.data.idx import sets_of
from unfog.data.listing import Kind, Listing, Unused, annotate, few, natural
from unfog.data.metadata import NAMES, Line, metadata_lines, text_of
from unfog.data.packed import ARCHIVES, SHARDS, Packed, packed
from unfog.data.pictures import SUFFIXES
from unfog.data.source import MissingDataError
from unfog.data.walk import walk
from unfog.runtime.errors import UserError
from unfog.runtime.lines import counted

PICTURES = Kind("picture", "pictures", SUFFIXES)
"""What folders hold unless somebody asks for something else."""
TRAIN = frozenset({"train", "training"})
HELD = ("val", "validation", "valid", "dev", "test", "testing", "eval")
"""Names of folders that are held out, in lower case; where there are several, the first of them is."""
SIDECARS = (".txt", ".caption")
"""Suffixes of captions beside pictures; the first that is there is used."""
CLASS = ".cls"
"""Suffix of a class beside a picture, as in WebDataset's shards."""
OTHER = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".eps", ".tga", ".ico", ".exr", ".dng"})
"""Suffixes of pictures that are not read; `.avif` where Pillow was built without it."""
CAPTION = 1 << 20
"""Bytes of a caption's file, at most."""
REPEATS = re.compile(r"\d+_.+")
"""Names of kohya's folders: how often to repeat the pictures, and what they show."""


def located(path: str) -> tuple[Path | Packed, list[str]]:
    """Return the folder or the archives at a path, and names that several archives share.

    A folder that holds tars or Parquet files, itself or in `data/`, and no pictures stands for these.

    Raises: UserError: If there is nothing of the kind, or an archive is damaged.
    """
    place = existing(path, ARCHIVES)
    if not place.is_dir():
        return packed(place, (place,))
    there = [name for folder in (place, place / "data") if folder.is_dir() for name in folder.iterdir()]
    shards = tuple(sorted(name for name in there if name.suffix.lower() in SHARDS and name.is_file()))
    if not shards or any(_suffix(name) in SUFFIXES for name in walk(place, SUFFIXES).files):
        return place, []
    return packed(place, shards)


def list_current(
    root: Path | Packed, twice: Sequence[str], where: str, label_from: str = labels.AUTO, kind: Kind = PICTURES
) -> Listing:
    """List the files of a folder or of archives: its images, or those of another kind.

    Args:
        root: The folder, or the archives.
        twice: Names that several archives share.
        where: Filter for the lines of metadata, see `folder`.
        label_from: What the classes are, see `folder`.
        kind: The kind of the files.

    Raises: UserError: If there are no such files or no such classes, or the metadata are damaged.
    """
    labels.check(label_from)
    names, unused = walk(root, kind.suffixes)
    unused.add("files with the same name as another one in the archives", twice)
    pictures = [name for name in names if kind.holds(name)]
    rest = [name for name in names if not kind.holds(name)]
    sources = metadata_of(rest)
    if where and not sources:
        raise UserError(f"data.where selects lines of metadata.jsonl, but {root} has none: omit data.where")
    column = labels.column_of(label_from)
    found = _from_metadata(root, sources, where, pictures, unused, column, kind) if sources else None
    rest = [name for name in rest if name not in sources]
    if found is None and not pictures:
        _sort_out(rest, set(), "", unused, kind=kind)
        what = f"{root} contains no {kind.many if kind != PICTURES else 'images'} ({', '.join(sorted(kind.suffixes))})"
        if isinstance(root, Path) and sets_of(root):
            raise UserError(f"{what}, but idx files: the recipe 'mnist' or 'folder' trains on them")
        raise MissingDataError("; ".join([what, *unused.sentences()]), "check the path")
    if found is None:
        found = _from_folders(root, pictures, rest, unused, kind)
    else:
        _sort_out(rest, set(), "caption files, since there is a metadata file", unused, kind=kind)
    if label_from in labels.PARTS:
        found = replace(found, labels=None, classes=())
    elif label_from != labels.AUTO and (not sources or found.labels is None):
        raise UserError(
            f"{root} has no metadata.csv or metadata.jsonl with a column {column or 'label'!r}: add it, or choose "
            "another `label_from`"
        )
    rule = label_from if label_from in labels.PARTS or not sources else ""
    found = replace(_split(replace(found, root=root, many=kind.many), unused, rule, kind), unused=unused)
    return replace(found, notes=(*found.notes, *_about_captions(found, bool(sources), kind)))


def _about_captions(found: Listing, listed: bool, kind: Kind) -> list[str]:
    """Say which captions could not be decoded and, where metadata do not list them, which pictures have none."""
    captioned = list(zip(found.files, found.captions or (), strict=False))
    damaged = [name for name, text in captioned if set(text) & {"\ufffd", "\0"}]
    without = [] if listed else [name for name, text in captioned if not text]
    notes = []
    if damaged:
        notes.append(f"{len(damaged):,} captions are neither UTF-8 nor marked as UTF-16: convert them ({few(damaged)})")
    if without:
        notes.append(f"without a caption, and given an empty one: {counted(len(without), kind.one)} ({few(without)})")
    return notes


def _suffix(name: str) -> str:
    """Return the suffix of a name in lower case."""
    return PurePosixPath(name).suffix.lower()


def metadata_of(names: Sequence[str]) -> list[str]:
    """Return the files of metadata among names: one for each folder, the first kind of `NAMES` that is there."""
    found: dict[str, str] = {}
    for kind in NAMES:
        for name in names:
            path = PurePosixPath(name)
            if path.name == kind:
                found.setdefault(str(path.parent), name)
    return sorted(found.values())


def _from_metadata(
    root: Path | Packed,
    sources: Sequence[str],
    condition: str,
    pictures: Sequence[str],
    unused: Unused,
    column: str,
    kind: Kind,
) -> Listing | None:
    """Return what metadata say of pictures, with the labels of a column, or None if they say nothing of any."""
    entries: dict[str, Mapping[str, object]] = {}
    others: dict[str, None] = {}
    spelled = {unicodedata.normalize("NFC", name): name for name in pictures}
    there = set(pictures)
    for source in sources:
        for line in metadata_lines(root, source, condition):
            name, entry = _checked(root, line)
            others.update(dict.fromkeys(key for key in line.others if key != column))
            entry = {**entry, "label": entry.get(column)} if column else entry
            entries[name if name in there else spelled.get(unicodedata.normalize("NFC", name), name)] = entry
    named = root / sources[0]
    if not entries and all(PurePosixPath(source).name == "dataset.json" for source in sources):
        return None
    if not entries and condition:
        raise UserError(f"no line of {named} matches {condition}: check data.where")
    if not entries:
        raise UserError(
            f"{named} lists no {kind.many if kind != PICTURES else 'images'}: add lines with 'file_name', or remove it"
        )
    if not condition:
        unused.add(unlisted(kind), [name for name in pictures if name not in entries])
    unused.add(f"keys of {PurePosixPath(sources[0]).name}, which unfog does not read", others)
    return annotate(str(named), entries, rules=2)


def unlisted(kind: Kind = PICTURES) -> str:
    """Return why files are not used that metadata do not name."""
    return f"{kind.many} that the metadata do not list"


def _checked(root: Path | Packed, line: Line) -> tuple[str, Mapping[str, object]]:
    """Return the file and the entry of a line.

    Raises: UserError: If it is invalid.
    """
    if isinstance(line.entry, str):
        raise UserError(f"{root / line.source}, line {line.number}: {line.entry}: correct the line")
    return str(line.entry["file_name"]), line.entry


def _from_folders(
    root: Path | Packed, pictures: Sequence[str], rest: Sequence[str], unused: Unused, kind: Kind
) -> Listing:
    """Return pictures with what lies beside them: captions, and classes."""
    there = set(rest)
    captions: dict[str, str] = {}
    marks: dict[str, str] = {}
    for name in pictures:
        stem = str(PurePosixPath(name).with_suffix(""))
        if beside := next((stem + suffix for suffix in SIDECARS if stem + suffix in there), None):
            captions[name] = beside
        if stem + CLASS in there:
            marks[name] = stem + CLASS
    captioned = 2 * len(captions) >= len(pictures)
    marked = len(marks) == len(pictures)
    used = {*(captions.values() if captioned else ()), *(marks.values() if marked else ())}
    few_of = f"captions, since {len(pictures) - len(captions):,} of {len(pictures):,} {kind.many} have none"
    lonely = f"captions without a {kind.one}"
    _sort_out(rest, used, few_of if captions else lonely, unused, set(captions.values()), kind)
    entries: dict[str, dict[str, object]] = {name: {} for name in pictures}
    if captioned:
        for name in pictures:
            text = text_of(root / captions[name], CAPTION) if name in captions else ""
            entries[name]["text"] = " ".join(text.split())
    for name in pictures if marked else ():
        entries[name]["label"] = text_of(root / marks[name], CAPTION).strip()
    return annotate(str(root), entries, rules=2)


def _sort_out(
    rest: Sequence[str],
    used: set[str],
    why: str,
    unused: Unused,
    captions: set[str] | frozenset[str] = frozenset(),
    kind: Kind = PICTURES,
) -> None:
    """Record the files that are no pictures and are not used, each with its reason.

    Args:
        rest: Files that are no pictures.
        used: Those of them that are used.
        why: Why captions are not.
        unused: Where to record them.
        captions: Captions that belong to a picture.
        kind: The kind of the files.
    """
    for name in rest:
        if name in used:
            continue
        if PurePosixPath(name).name == "metadata.parquet":
            unused.add("metadata in a form that is not read: write them as metadata.jsonl or metadata.csv", [name])
        elif PurePosixPath(name).name in NAMES:
            unused.add("further metadata, since there are others or they list nothing", [name])
        elif _suffix(name) in SIDECARS:
            unused.add(why if name in captions or not captions else f"captions without a {kind.one}", [name])
        elif kind == PICTURES and _suffix(name) in OTHER:
            unused.add("pictures of a kind that is not read: convert them to PNG or JPEG", [name])
        else:
            unused.add("of a kind that is not read", [name])


def _split(found: Listing, unused: Unused, label_from: str, kind: Kind) -> Listing:
    """Return a listing with what is held out, where folders say so, and with the classes that its names say."""
    parts = {name: PurePosixPath(name).parts[0].lower() if "/" in name else "" for name in found.files}
    kinds = set(parts.values())
    seen_through = bool(kinds & TRAIN) and kinds <= {*TRAIN, *HELD}
    notes = list(found.notes)
    keep = dict.fromkeys(found.files, True)
    held: dict[str, bool] | None = None
    if seen_through and (kinds & {*HELD}):
        chosen = next(name for name in HELD if name in kinds)
        held = {name: part == chosen for name, part in parts.items()}
        keep = {name: part in TRAIN or part == chosen for name, part in parts.items()}
        unused.add(f"{kind.many} of a part that is not held out, since {chosen}/ is", _dropped(keep))
        notes.append(f"held out: {counted(sum(held.values()), kind.one)} in {chosen}/; data.heldout is not used")
    inner = {name: name.split("/", 1)[1] if seen_through else name for name in found.files}
    below = {part.lower() for path in inner.values() for part in PurePosixPath(path).parts[1:-1]} & {*TRAIN, *HELD}
    if below & TRAIN and below - TRAIN:
        parts_named = " and ".join(sorted(below))
        notes.append(f"{parts_named} below other folders hold nothing out: put them above the others for that")
    classes: dict[str, str] = {}
    if label_from in labels.PARTS:
        kept = {name: path for name, path in inner.items() if keep[name]}
        classes = labels.by_name(label_from, found.root, kept, notes, unused, kind)
        keep = {name: name in classes for name in keep}
    elif label_from and found.labels is None:
        classes = _classes(inner, keep, notes, unused, kind)
    if classes and held is not None:
        known = {label for name, label in classes.items() if keep[name] and not held[name]}
        strange = [name for name, label in classes.items() if keep[name] and label not in known]
        unused.add(f"held-out {kind.many} of a class that is not in the training part", strange)
        keep |= dict.fromkeys(strange, False)
    rows = [row for row, name in enumerate(found.files) if keep[name]]
    chosen_held = None if held is None else tuple(held[found.files[row]] for row in rows)
    found = replace(found.some(rows), held=chosen_held, notes=tuple(notes))
    if not classes:
        return found
    order = tuple(sorted({classes[name] for name in found.files}, key=natural))
    index = {name: place for place, name in enumerate(order)}
    return replace(found, labels=tuple(index[classes[name]] for name in found.files), classes=order)


def _dropped(keep: Mapping[str, bool]) -> list[str]:
    """Return the names that are not kept."""
    return [name for name, kept in keep.items() if not kept]


def _classes(
    inner: Mapping[str, str], keep: dict[str, bool], notes: list[str], unused: Unused, kind: Kind
) -> dict[str, str]:
    """Return the class of each picture by its folder; empty without two folders or more.

    Args:
        inner: Names of the pictures, and their names below `train/`, where there is one.
        keep: Which pictures are used; pictures beside class folders are dropped.
        notes: Where to say what was done.
        unused: Where to record what is not used.
        kind: The kind of the files.
    """
    tops = {name: path.split("/")[0] if "/" in path else "" for name, path in inner.items() if keep[name]}
    loose = [name for name, top in tops.items() if not top]
    folders = {top for top in tops.values() if top}
    if folders and all(REPEATS.fullmatch(top) for top in folders):
        notes.append(
            f"the numbers in names such as {min(folders)} are not used as repeats (kohya's): each {kind.one} "
            "counts once"
        )
    spelled = {top: unicodedata.normalize("NFC", top) for top in folders}
    if len(set(spelled.values())) < len(folders):
        notes.append("folders whose names differ only in how accents are spelled (NFC, NFD) are one class")
    if len(set(spelled.values())) < 2:
        return {}
    if 2 * len(loose) >= len(tops):
        notes.append(
            f"the folders ({few(sorted(folders))}) are not used as classes, since most {kind.many} lie outside of them"
        )
        return {}
    unused.add(f"{kind.many} outside of the class folders, which have no class: move them into one", loose)
    keep |= dict.fromkeys(loose, False)
    return {name: spelled[top] for name, top in tops.items() if top}
