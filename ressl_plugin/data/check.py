"""Find every bad image before training starts, and remember those that are sound."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ressl_plugin.config.schema import MAX_PIXELS
from ressl_plugin.data import known
from ressl_plugin.data.images import EXTENSIONS, BadImage, decode, is_image_name, printable
from ressl_plugin.data.walk import Listing, by_extension, class_folders, walk
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.progress import progress_bar
from ressl_plugin.utils.threads import in_threads

# What happens to each kind. Converted ones are usable as they are (images.to_rgb says how).
CONVERTED = ("grayscale", "palette", "alpha", "16-bit", "cmyk", "animated", "colour-space")
# A note beside those: an EXIF orientation that says it is to be turned, which data.exif does.
TURNED = "turned"


@dataclass
class Report:
    """What check_folder found under `root`; file names are relative to it."""

    root: Path
    images: int = 0
    converted: Counter = field(default_factory=Counter)  # kind -> count; one image may have two
    refused: list = field(default_factory=list)  # (file or folder, kind, detail), sorted
    stray: list = field(default_factory=list)  # files that are ignored, sorted
    ignored: Counter = field(default_factory=Counter)  # their extensions -> count
    links: list = field(default_factory=list)  # ignored, too: to folders that are read elsewhere

    def counts(self):
        """-> dict kind of refusal -> count."""
        return dict(Counter(kind for _, kind, _ in self.refused))

    def refuse(self):
        """Raise one UserError if any file is refused: the first few, how many, what to do."""
        if not self.refused:
            return
        first = "; ".join(f"{name} ({kind}: {detail})" for name, kind, detail in self.refused[:3])
        first = printable(first)
        more = f"; and {len(self.refused) - 3} more" if len(self.refused) > 3 else ""
        raise UserError(
            f"{printable(self.root)}: {len(self.refused)} of its files or folders cannot be used: "
            f"{first}{more}. Delete or repair them; `ressl data check {printable(self.root)}` "
            "lists all"
        )

    def lines(self):
        """The whole report as lines of text."""
        yield f"{printable(self.root)}: {self.images} images, {len(self.refused)} refused"
        for kind in CONVERTED:
            if self.converted[kind]:
                yield f"  converted  {kind:<13} {self.converted[kind]}"
        if self.converted[TURNED]:
            yield f"  as stored  {self.converted[TURNED]} have an EXIF orientation: data.exif=true"
        for extension, count in self.ignored.most_common():
            same = (name for name in self.stray if Path(name).suffix.lower() == extension)
            what = printable(extension) or "no extension"
            yield f"  ignored    {what:<13} {count}, such as {printable(next(same))}"
        if self.links:
            yield (
                f"  ignored    {len(self.links)} links to folders that are read elsewhere, such as "
                f"{printable(self.links[0])}"
            )
        for name, kind, detail in self.refused:
            yield f"  refused    {kind:<13} {printable(name)}: {printable(detail)}"


def check_folder(root, labels=True, progress=True, seen=False, max_pixels=MAX_PIXELS):
    """Open and decode every image under root -> Report.

    labels: root holds a folder a class, and one without images is refused; images outside the
    class folders are stray. If root holds train/ and val/, those are the roots. seen: files that
    were found sound are not decoded again until their size or time changes (known.py), nor counted
    as converted. Raises UserError if root is no folder or holds no image; bad files are in the
    report (Report.refuse raises).
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{printable(root)} is no folder; give the folder of the images")
    report = Report(root)
    names = _list(report, labels)
    report.images = len(names)
    if not names and not report.refused:
        raise UserError(f"{printable(root)}: {_why_nothing(report, labels)}")
    before = known.stamps(root) if seen else set()
    sound = set()

    def verdict(name):
        try:
            stamp = known.stamp(name, os.stat(root / name))
        except OSError:
            stamp = None  # decode says why
        if stamp in before:
            return name, stamp, "ok", []
        try:
            return name, stamp, "ok", decode(root / name, max_pixels=max_pixels)[1]
        except BadImage as error:
            return name, stamp, error.kind, error.detail

    how = {"desc": f"checking {root.name}", "unit": "images", "total": len(names)}
    verdicts = progress_bar(in_threads(verdict, names), disable=not progress, **how)
    try:
        for name, stamp, kind, detail in verdicts:
            if kind == "ok":
                report.converted.update(detail)
                sound.add(stamp)
            else:
                report.refused.append((name, kind, detail))
    finally:  # after Ctrl-C, too
        if seen and not sound <= before:
            known.remember_stamps(root, sound | before)
    report.refused.sort()
    return report


def check_once(root, labels, digest, max_pixels=MAX_PIXELS, progress=True):
    """Refuse bad files below root, as check_folder finds them; no file is decoded twice for it.

    digest: of the data set (identity.identify) that has been read from root. Once it is found
    sound, it is so for all runs, in any place.

    Raises:
        UserError: files that cannot be used.
    """
    usual = max_pixels == MAX_PIXELS
    fact = "sound" if usual else f"sound, of {max_pixels} pixels at most"
    if known.facts(digest).get(fact) is True:
        return
    check_folder(root, labels, progress, seen=usual, max_pixels=max_pixels).refuse()
    known.remember(digest, **{fact: True})


def _list(report, labels):
    """The images' names relative to the root, sorted; the rest goes into the report."""
    root = report.root

    def relative(paths):
        return sorted(os.path.relpath(path, root) for path in paths)

    found, tops = Listing(), [root]
    splits = [root / split for split in ("train", "val") if (root / split).is_dir()]
    if labels:
        beside = class_folders(root, found)
        classes = {base: class_folders(base, found) for base in splits} or {root: beside}
        tops = [os.path.join(base, name) for base, names in classes.items() for name in names]
    walk(tops, above=[root, *splits] if labels else (), found=found)
    report.ignored = found.ignored()
    report.stray, report.links = relative(found.others), relative(found.links)
    for name in relative(found.unreadable):
        report.refused.append((name, "unreadable", "no permission to list the folder"))
    unreadable = {name for name, _, _ in report.refused}
    for top, images in found.images.items() if labels else ():
        name = os.path.relpath(top, root)
        if not images and name not in unreadable:
            report.refused.append((name, "empty-class", "the class folder holds no image"))
    return relative(path for images in found.images.values() for path in images)


def _why_nothing(report, labels):
    loose = sum(map(is_image_name, report.stray))
    if labels and loose:
        return (
            f"{loose} images and no class folders; lay them out as one folder a class, or check "
            "them with --no-labels"
        )
    others = f" ({by_extension(report.ignored)} are ignored)" if report.ignored else ""
    return f"holds no image{others}; these extensions are read: {' '.join(EXTENSIONS)}"
