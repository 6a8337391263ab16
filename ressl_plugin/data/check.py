"""Find every bad image before training starts, and remember data that are sound."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import PIL

from ressl_plugin.config.schema import MAX_PIXELS
from ressl_plugin.data.images import BadImage, TooLarge, decode
from ressl_plugin.data.sources import FlatFolder, FolderImages
from ressl_plugin.utils.errors import UserError, printable
from ressl_plugin.utils.progress import progress_bar
from ressl_plugin.utils.threads import in_threads

log = logging.getLogger(__name__)


@dataclass
class Report:
    """What check_folder found under `root`; file names are relative to it."""

    root: str
    images: int
    ignored: str  # files that are not read, counted by extension
    turned: int = 0  # images whose EXIF orientation says so
    refused: list[tuple[str, str]] = field(default_factory=list)  # (file, why)
    without: str = ""  # what the command needs where there are no class folders
    limited: bool = False  # a file is refused by a limit of pixels that the command has not

    def refuse(self):
        """Raise one UserError if any file is refused: the first few, how many, what to do."""
        if not self.refused:
            return
        first = "; ".join(f"{name} ({why})" for name, why in self.refused[:3])
        more = f"; and {len(self.refused) - 3} more" if len(self.refused) > 3 else ""
        hint = f"; `ressl data check {self.root}{self.without}` lists all"
        raise UserError(
            f"{self.root}: {len(self.refused)} of its files cannot be used: {first}{more}. Delete "
            f"or repair them{'' if self.limited else hint}"
        )

    def lines(self):
        """The whole report as lines of text."""
        lines = [f"{self.root}: {self.images} images, {len(self.refused)} refused"]
        if self.turned:
            lines.append(f"  as stored  {self.turned} have an EXIF orientation: data.exif=true")
        if self.ignored:
            lines.append(f"  ignored    {self.ignored}")
        lines += [f"  refused    {name}: {why}" for name, why in self.refused]
        return [printable(line) for line in lines]


def check_folder(root, labels=True):
    """Open and decode every image under root, a folder a class or without labels -> Report.

    Raises UserError as FolderImages and FlatFolder do; bad files are in the report (Report.refuse
    raises).
    """
    if not Path(root).is_dir():
        raise UserError(f"{root} is no folder; give the folder of the images")
    return _check(FolderImages(root, "FOLDER") if labels else FlatFolder(root, "FOLDER"))


def _check(dataset, max_pixels=MAX_PIXELS):
    paths = [path for path, _ in dataset.samples]
    report = Report(dataset.root, len(paths), dataset.ignored)
    report.without = "" if dataset.classes else " --no-labels"

    def verdict(path):
        try:
            return decode(path, max_pixels=max_pixels)[1], None, False
        except BadImage as error:
            return False, str(error), isinstance(error, TooLarge) and max_pixels < MAX_PIXELS

    how = {"desc": f"checking {Path(dataset.root).name}", "unit": "images", "total": len(paths)}
    for path, (turned, why, limited) in zip(paths, progress_bar(in_threads(verdict, paths), **how)):
        report.turned += turned
        report.limited |= limited
        if why:
            report.refused.append((os.path.relpath(path, dataset.root), why))
    return report


def check_once(dataset, digest, max_pixels=MAX_PIXELS):
    """Refuse bad files among the images of a folder (sources.py), as check_folder finds them.

    digest: of the data set (identity.identify). Once it is found sound it is so for all runs, in
    any place: that is kept in `$RESSL_CACHE`, or in the user's cache folder.

    Raises:
        UserError: files that cannot be used.
    """
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ressl_plugin").expanduser()
    known = Path(os.environ.get("RESSL_CACHE") or usual)
    sound = known / f"{digest}-{max_pixels}-{PIL.__version__}.sound"
    if sound.exists():
        return
    _check(dataset, max_pixels).refuse()
    try:
        known.mkdir(parents=True, exist_ok=True)
        sound.touch()
    except OSError as error:
        log.info(
            "%s cannot be written (%s): the data will be looked at again; RESSL_CACHE=DIR is "
            "another place for it", known, error.strerror,
        )  # fmt: skip
