"""Which files of a folder are images: one rule for data sets and for `predict`, by folder and by pattern.

Images are regular files whose ending the installed Pillow has for a format that it decodes itself. What is hidden
(names that begin with a dot, and the `@eaDir` of some file servers) is left out at every depth. Links to files are
read. Links to folders are followed where they are named, as a class folder is, and not below: they could lead back,
into another class, or out into a whole disk. What is left out and not hidden is counted, so that it can be named.
"""

import functools
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageFile

HIDDEN_FOLDERS = ("@eaDir",)
# Formats that Pillow opens and does not decode itself: a program would be run (Ghostscript), or nothing is behind the
# size that is found. Others of the second kind say it themselves, as `StubImageFile`.
NOT_DECODED = ("EPS", "MPEG")
# Formats that have an ending of their own and are opened by the reader of another.
OPENED_AS = {"MPO": "JPEG"}


@functools.cache
def image_formats() -> tuple[str, ...]:
    """Names of the formats that the installed Pillow decodes, the common ones first."""
    Image.preinit()
    Image.init()
    formats = (name for name in Image.ID if name in Image.OPEN and name not in NOT_DECODED)
    return tuple(name for name in formats if not _is_stub(Image.OPEN[name][0]))


def _is_stub(opener: object) -> bool:
    return isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)


@functools.cache
def image_endings() -> frozenset[str]:
    """Endings of file names, like .jpg, that `image_formats` have."""
    formats = image_formats()
    endings = Image.registered_extensions().items()
    return frozenset(ending for ending, name in endings if OPENED_AS.get(name, name) in formats)


def is_hidden(name: str) -> bool:
    """Whether what has this name is left out, whatever it is."""
    return name.startswith(".") or name in HIDDEN_FOLDERS


def images_below(folder: str | Path, unused: dict[str, str]) -> list[str]:
    """Paths of the images at any depth below a folder, sorted.

    Args:
        unused: what else is there is added, with what `why_unused` says of it by path.
    """
    found, folders = [], [os.fspath(folder)]
    while folders:
        for entry in visible(folders.pop()):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif reason := why_unused(entry):
                unused[entry.path] = reason
            else:
                found.append(entry.path)
    return sorted(found)


def visible(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder and is not hidden. Raises OSError where it cannot be read."""
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not is_hidden(entry.name))


def why_unused(entry: os.DirEntry[str]) -> str | None:
    """The ending of what is no image, or what it is instead of a regular file; None of an image."""
    target = Path(entry.path) if entry.is_symlink() else entry  # a path answers where a link leads in a circle
    if target.is_dir():
        return "link to a folder"
    stem, _, ending = entry.name.lower().rpartition(".")
    ending = f".{ending}" if stem and ending else "without ending"
    if not target.is_file():
        return f"{ending} (no regular file)"
    return None if ending in image_endings() else ending


def count_unused(unused: dict[str, str]) -> dict[str, int]:
    """How many there are of each kind, the most frequent first."""
    return dict(sorted(Counter(unused.values()).items(), key=lambda item: (-item[1], item[0])))


def counted(counts: dict[str, int]) -> str:
    """'12 .txt, 3 .heic'."""
    return ", ".join(f"{number} {shown(kind)}" for kind, number in counts.items())


def check_regular(path: str) -> None:
    """Refuse what would wait for ever when it is opened, or has no end: pipes, sockets, devices.

    Raises:
        OSError: it is no regular file, or cannot be asked.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError("it is no regular file")


def shown(name: object) -> str:
    """A name as it can be printed and logged anywhere: bytes that are no text, newlines and the like as escapes."""
    text = str(name)
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
