"""Find every bad image before training starts, and remember what was found."""

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import PIL
from tqdm import tqdm

from ressl_plugin.data.images import BadImage, decode, is_image_name
from ressl_plugin.errors import UserError

# What happens to each kind. Converted ones are usable as they are (images.to_rgb says how).
CONVERTED = ("grayscale", "palette", "alpha", "16-bit", "cmyk", "animated", "colour-space")
REFUSED = (
    "corrupt",
    "truncated",
    "zero-byte",
    "not-an-image",
    "huge",
    "unsupported",
    "unreadable",
    "broken-link",
    "missing",
    "empty-class",
)
# A file that is not there or not readable may become so without a change of size or time.
_NOT_CACHED = ("unreadable", "broken-link", "missing")


@dataclass
class Report:
    """What check_folder found under `root`; file names are relative to it."""

    root: Path
    images: int = 0
    converted: Counter = field(default_factory=Counter)  # kind -> count; one image may have two
    refused: list = field(default_factory=list)  # (file or folder, kind, detail), sorted
    stray: list = field(default_factory=list)  # files that are ignored: no image's extension

    def counts(self):
        """-> dict kind of refusal -> count."""
        return dict(Counter(kind for _, kind, _ in self.refused))

    def refuse(self):
        """Raise one UserError if any file is refused: the first few, how many, what to do."""
        if not self.refused:
            return
        first = "; ".join(f"{name} ({kind}: {detail})" for name, kind, detail in self.refused[:3])
        more = f"; and {len(self.refused) - 3} more" if len(self.refused) > 3 else ""
        raise UserError(
            f"{self.root}: {len(self.refused)} of its files or folders cannot be used: "
            f"{first}{more}. Delete or repair them; `ressl data check {self.root}` lists all"
        )

    def lines(self):
        """The whole report as lines of text."""
        yield f"{_printable(self.root)}: {self.images} images, {len(self.refused)} refused"
        for kind in CONVERTED:
            if self.converted[kind]:
                yield f"  converted  {kind:<13} {self.converted[kind]}"
        if self.stray:
            yield f"  ignored    {len(self.stray)} other files, such as {_printable(self.stray[0])}"
        for name, kind, detail in self.refused:
            yield f"  refused    {kind:<13} {_printable(name)}: {detail}"


def check_folder(root, labels=True, progress=True, cache=None, workers=None):
    """Open and decode every image under root -> Report.

    labels: root holds a folder a class, and one without images is refused; images outside the
    class folders are stray. If root holds train/ and val/, those are the roots. cache: a JSON file
    (beside the run) of verdicts by path, size and mtime, so that a second check only asks for the
    files' times; None for no cache. workers: threads, by default one a core up to 8. Raises
    UserError if root is no folder; bad files are in the report (Report.refuse raises).
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is no folder; give the folder of the images")
    report = Report(root)
    names = _list(report, labels)
    report.images = len(names)
    known = _read_cache(cache, root)
    fresh = {}

    def verdict(name):
        try:
            stat = os.stat(root / name)
            stamp = [stat.st_size, stat.st_mtime_ns]
        except OSError:
            stamp = None  # decode says why
        if stamp and name in known and known[name][0] == stamp:
            return name, known[name]
        try:
            found = [stamp, "ok", decode(root / name)[1]]
        except BadImage as error:
            found = [stamp, error.kind, error.detail]
        return name, found

    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))  # Pillow frees the GIL
    with pool, tqdm(total=len(names), desc=f"checking {root.name}", disable=not progress) as bar:
        try:
            for name, found in _in_order(pool, verdict, names):
                bar.update()
                _, kind, detail = found
                if kind == "ok":
                    report.converted.update(detail)
                else:
                    report.refused.append((name, kind, detail))
                if found[0] and kind not in _NOT_CACHED:
                    fresh[name] = found
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for a million files
            raise
    report.refused.sort()
    if cache and fresh != known:
        _write_cache(cache, root, fresh)
    return report


def _in_order(pool, function, items, ahead=4096):
    """pool.map, but never with more than `ahead` items waiting: ImageNet has 1.3 million."""
    for start in range(0, len(items), ahead):
        yield from pool.map(function, items[start : start + ahead])


def _list(report, labels):
    """The images' names relative to the root, sorted; strays, empty classes and unreadable
    folders go into the report."""
    root, names, loose = report.root, [], []

    def failed(error):
        name = Path(error.filename).relative_to(root).as_posix()
        report.refused.append((name, "unreadable", "no permission to list the folder"))

    roots = [root / split for split in ("train", "val") if (root / split).is_dir()]
    tops = {top: 0 for base in roots or [root] for top in _folders(base)} if labels else {}
    depth = 2 if roots else 1
    for folder, _, files in os.walk(root, followlinks=True, onerror=failed):
        for file in files:
            name = Path(folder, file).relative_to(root)
            top = root.joinpath(*name.parts[:depth])
            if not is_image_name(file) or (labels and top not in tops):
                loose.append(name.as_posix())
                continue
            names.append(name.as_posix())
            if labels:
                tops[top] += 1
    report.stray = sorted(loose)
    unreadable = {name for name, _, _ in report.refused}
    for top, count in tops.items():
        name = top.relative_to(root).as_posix()
        if not count and name not in unreadable:
            report.refused.append((name, "empty-class", "the class folder holds no image"))
    return sorted(names)


def _folders(base):
    try:
        return [Path(entry.path) for entry in os.scandir(base) if entry.is_dir()]
    except PermissionError:
        return []  # os.walk reports it


def _read_cache(cache, root):
    try:
        content = json.loads(Path(cache).read_text()) if cache else {}
        valid = content.get("pillow") == PIL.__version__ and content.get("root") == str(root)
        return {k: v for k, v in content["files"].items() if _is_verdict(v)} if valid else {}
    except (OSError, ValueError, AttributeError, KeyError):
        return {}  # a damaged cache only costs time


def _is_verdict(entry):
    """Whether an entry of a cache is [stamp, kind, detail] as `check_folder` makes it."""
    if not isinstance(entry, list) or len(entry) != 3:
        return False
    stamp, kind, detail = entry
    if kind == "ok":
        return isinstance(detail, list) and all(note in CONVERTED for note in detail)
    return isinstance(stamp, list) and kind in REFUSED and isinstance(detail, str)


def _printable(name):
    """A file's name as text that any terminal takes: bytes that are no UTF-8 as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _write_cache(cache, root, files):
    cache = Path(cache)
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_name(f"{cache.name}.{os.getpid()}")
    partial.write_text(json.dumps({"pillow": PIL.__version__, "root": str(root), "files": files}))
    os.replace(partial, cache)
