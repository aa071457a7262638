"""Which suites exist, which are on this machine, and how to get the others. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from calift_core.data.cifar import CIFAR, find_batches
from calift_core.data.imagenet import OBJECTNET_MAPPINGS, imagenet_labels
from calift_core.errors import SpecError, UnknownNameError
from calift_core.home import cache_dir
from calift_core.schema.spec import BENCHMARK_CORRUPTIONS
from calift_core.schema.wire import DatasetInfo

FASHION_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")

#: The corruptions that ImageNet-C and CIFAR-C hold.
STORED_CORRUPTIONS = BENCHMARK_CORRUPTIONS
SEVERITIES = (1, 2, 3, 4, 5)


# ------------------------------------------------------------------------------------ names


@dataclass(frozen=True)
class SuiteId:
    """A suite as a RunSpec names it: `NAME`, `NAME:PATH`, `NAME:PATH#DOMAIN` or `NAME:DOMAIN`.

    Attributes:
        name: a key of `SUITES`, `folder` or `domains`.
        path: where it is; None for the usual place.
        domain: the ID domain of a suite of domains; None for its default.
    """

    name: str
    path: Path | None = None
    domain: str | None = None


def parse_suite_id(text: str) -> SuiteId:
    """Take a suite's name apart.

    Raises:
        UnknownNameError: no suite has this name.
        SpecError: a path or a domain is missing, or is not for this suite.
    """
    name, _, rest = text.partition(":")
    if name == "folder" and rest:
        return SuiteId(name, _path(rest))
    if name not in SUITES and name != "domains":
        raise UnknownNameError("suite", text, [*SUITES, "folder:PATH", "domains:PATH#DOMAIN"])
    place, _, domain = rest.partition("#")
    if name in DOMAIN_SUITES and place and not domain and place[0] not in "./~" and "/" not in rest:
        place, domain = "", place
    if name == "domains" and not (place and domain):
        raise SpecError(
            f"expected domains:PATH#DOMAIN, where DOMAIN is the ID data's folder, got {text!r}"
        )
    if domain and name not in (*DOMAIN_SUITES, "domains"):
        raise SpecError(f"{name} has no domains to choose the ID data from, got {text!r}")
    return SuiteId(name, _path(place) if place else None, domain or None)


def _path(text: str) -> Path:
    return Path(text).expanduser()


def suite_folder(name: str, path: Path | None = None) -> Path:
    """Where a named suite is looked for: `path`, else what CALIFT_NAME says, else the cache."""
    named = os.environ.get(variable_of(name))
    if path is not None:
        return path
    return Path(named).expanduser() if named else cache_dir() / name


def variable_of(name: str) -> str:
    """The setting that says where a named suite is, as in CALIFT_OFFICE_HOME."""
    return f"CALIFT_{name.upper().replace('-', '_')}"


def domain_name(folder: str) -> str:
    """How a domain's folder is called in reports: `Real World` is `real_world`."""
    return folder.lower().replace(" ", "_").replace("-", "_")


# ---------------------------------------------------------------------------------- layouts


@dataclass(frozen=True)
class Tree:
    """A folder of class folders that a data set consists of.

    Attributes:
        folders: where it may be below the suite's folder; the first that is there is taken.
        n_classes: class folders that it must have.
        n_images: published number of images.
        source: who publishes it, and under what name.
    """

    folders: tuple[str, ...]
    n_classes: int
    n_images: int
    source: str

    def find(self, root: Path) -> Path | None:
        """The folder, if it is there."""
        return next((root / f for f in self.folders if (root / f).is_dir()), None)


#: ImageNet's parts and shifts.
IMAGENET: dict[str, Tree] = {
    "train": Tree(
        ("train", "ILSVRC2012/train"),
        1000,
        1_281_167,
        "image-net.org, after registration: ILSVRC2012_img_train.tar, one folder for each class",
    ),
    "test": Tree(
        ("val", "ILSVRC2012/val"),
        1000,
        50_000,
        "image-net.org, after registration: ILSVRC2012_img_val.tar, sorted into class folders",
    ),
    "imagenet-v2": Tree(
        ("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"),
        1000,
        10_000,
        "github.com/modestyachts/ImageNetV2: imagenetv2-matched-frequency.tar.gz",
    ),
    "imagenet-r": Tree(
        ("imagenet-r",), 200, 30_000, "github.com/hendrycks/imagenet-r: imagenet-r.tar"
    ),
    "imagenet-a": Tree(
        ("imagenet-a",), 200, 7_500, "github.com/hendrycks/natural-adv-examples: imagenet-a.tar"
    ),
    "imagenet-sketch": Tree(
        ("sketch", "imagenet-sketch"),
        1000,
        50_889,
        "github.com/HaohanWang/ImageNet-Sketch: ImageNet-Sketch.zip",
    ),
    # The images of the 113 classes that ImageNet has too; the others are not needed.
    "objectnet": Tree(
        ("objectnet-1.0/images", "objectnet/images"),
        113,
        18_574,
        "objectnet.dev: objectnet-1.0.zip, with its mappings/ folder beside images/",
    ),
}
IMAGENET_SHIFTS = tuple(name for name in IMAGENET if name not in ("train", "test"))

#: Folders that the archives of ImageNet-C are unpacked to, or not.
_CATEGORIES = ("", "noise", "blur", "weather", "digital", "extra")


@dataclass(frozen=True)
class Domains:
    """A data set of several domains with the same classes.

    Attributes:
        images: domain → published numbers of images.
        n_classes: in each domain.
        id_domain: the ID data where the spec does not choose.
    """

    images: Mapping[str, tuple[int, ...]]
    n_classes: int
    id_domain: str


DOMAIN_SUITES: dict[str, Domains] = {
    "pacs": Domains(
        {"art_painting": (2048,), "cartoon": (2344,), "photo": (1670,), "sketch": (3929,)},
        7,
        "photo",
    ),
    "vlcs": Domains(
        {"caltech101": (1415,), "labelme": (2656,), "sun09": (3282,), "voc2007": (3376,)},
        5,
        "voc2007",
    ),
    "office-home": Domains(
        {"art": (2427,), "clipart": (4365,), "product": (4439,), "real_world": (4357,)},
        65,
        "real_world",
    ),
    # As first published, and after its authors removed duplicates.
    "domainnet": Domains(
        {
            "clipart": (48_837, 48_129),
            "infograph": (53_201, 51_605),
            "painting": (75_759, 72_266),
            "quickdraw": (172_500,),
            "real": (175_327, 172_947),
            "sketch": (70_386, 69_128),
        },
        345,
        "real",
    ),
}


def class_folders(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are none."""
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def imagenet_folder(path: Path | None = None) -> Path:
    """The folder that holds ImageNet and its shifts side by side; it may not exist."""
    return suite_folder("imagenet", path)


def imagenet_missing(root: Path, names: Iterable[str] = tuple(IMAGENET)) -> list[str]:
    """What is missing or has the wrong number of classes, one sentence each."""
    problems = []
    for name in names:
        tree = IMAGENET[name]
        path = tree.find(root)
        if path is None:
            problems.append(f"{name}: no folder {tree.folders[0]}/")
            continue
        found = len(class_folders(path))
        if name == "objectnet":
            mappings = path.parent / "mappings"
            lacking = [file for file in OBJECTNET_MAPPINGS if not (mappings / file).is_file()]
            if lacking:
                problems.append(f"{name}: no mappings/{', no mappings/'.join(lacking)}")
            if found < tree.n_classes:
                problems.append(
                    f"{name}: {path.name}/ has {found} class folders, expected at least "
                    f"{tree.n_classes}"
                )
        elif found != tree.n_classes:
            problems.append(
                f"{name}: {path.relative_to(root)}/ has {found} class folders, "
                f"expected {tree.n_classes}"
            )
    return problems


def imagenet_c_folder(path: Path | None = None) -> Path:
    """The folder of ImageNet-C: its own setting, else imagenet-c/ beside ImageNet's train/."""
    if path is not None or os.environ.get(variable_of("imagenet-c")):
        return suite_folder("imagenet-c", path)
    return imagenet_folder() / "imagenet-c"


def imagenet_c_part(root: Path, corruption: str, severity: int) -> Path | None:
    """The class folders of one corruption at one severity, if they are there."""
    for category in _CATEGORIES:
        path = root / category / corruption / str(severity)
        if path.is_dir():
            return path
    return None


def imagenet_c_missing(root: Path) -> list[str]:
    """Which corruptions and severities are missing, one sentence for each corruption."""
    problems = []
    for corruption in STORED_CORRUPTIONS:
        lacking = [s for s in SEVERITIES if imagenet_c_part(root, corruption, s) is None]
        if lacking:
            which = ", ".join(f"{corruption}/{s}/" for s in lacking)
            problems.append(f"{corruption}: no folder {which}")
    return problems


def cifar_folder(name: str, path: Path | None = None) -> Path:
    """The folder of CIFAR-10 or -100: the named one, else where torchvision downloads it to."""
    if path is not None or os.environ.get(variable_of(name)):
        return suite_folder(name, path)
    return cache_dir() / "torchvision"


def cifar_missing(name: str, root: Path) -> list[str]:
    """What is missing; nothing if the batches or class folders are there."""
    cifar = CIFAR[name]
    if find_batches(cifar, root) is not None:
        return []
    parts = [part for part in ("train", "test") if (root / part).is_dir()]
    if not parts:
        return [
            f"neither the batches {cifar.python[0]}/ or {cifar.binary[0]}/ nor train/ and test/"
        ]
    problems = [f"{part}: no folder {part}/" for part in ("train", "test") if part not in parts]
    for part in parts:
        found = len(class_folders(root / part))
        if found != len(cifar.classes):
            problems.append(
                f"{part}: {part}/ has {found} class folders, expected {len(cifar.classes)}"
            )
    return problems


def cifar_c_folder(name: str, path: Path | None = None) -> Path:
    """The folder of CIFAR-10-C or -100-C: its own setting, else beside the clean batches."""
    if path is not None or os.environ.get(variable_of(name)):
        root = suite_folder(name, path)
    else:
        root = cifar_folder(name.removesuffix("-c"))
    archive = root / name.upper().replace("CIFAR", "CIFAR-")
    return archive if archive.is_dir() else root


def cifar_c_missing(root: Path) -> list[str]:
    """Which of the 15 files of the benchmark and the labels are missing."""
    files = [f"{name}.npy" for name in (*STORED_CORRUPTIONS, "labels")]
    return [f"no file {file}" for file in files if not (root / file).is_file()]


def domain_folders(root: Path, known: Iterable[str] = ()) -> dict[str, str]:
    """Domain → folder name, of every folder that is there; `RealWorld` is a known `real_world`."""
    plain = {domain.replace("_", ""): domain for domain in known}
    found = {}
    for folder in class_folders(root):
        domain = domain_name(folder)
        found[plain.get(domain.replace("_", ""), domain)] = folder
    return found


def domains_missing(name: str, root: Path) -> list[str]:
    """Which domains are missing or have the wrong number of classes."""
    suite = DOMAIN_SUITES[name]
    found = domain_folders(root, suite.images) if root.is_dir() else {}
    problems = [f"{d}: no folder {d}/" for d in suite.images if d not in found]
    for domain in suite.images:
        if domain not in found:
            continue
        folders = class_folders(root / found[domain])
        if "train" in folders:
            folders = class_folders(root / found[domain] / "train")
        if len(folders) != suite.n_classes:
            problems.append(
                f"{domain}: {found[domain]}/ has {len(folders)} class folders, "
                f"expected {suite.n_classes}"
            )
    return problems


def fashion_mnist_folder() -> Path | None:
    """The folder that holds the four IDX files, gzipped or not, or None."""
    named = os.environ.get("CALIFT_FASHION_MNIST")
    candidates = [Path(named)] if named else []
    candidates += [_DEBIAN, cache_dir() / "torchvision" / "FashionMNIST" / "raw"]
    for folder in candidates:
        if all(
            (folder / f"{stem}.gz").is_file() or (folder / stem).is_file()
            for stem in FASHION_FILES.values()
        ):
            return folder
    return None


def _fashion_mnist_missing(_path: Path | None) -> list[str]:
    return [] if fashion_mnist_folder() else ["no folder with the four IDX files"]


# ------------------------------------------------------------------------------- the suites


@dataclass(frozen=True)
class SuiteEntry:
    """What is known of a named suite.

    Attributes:
        title: for people.
        how_to_get: a sentence for those who do not have it.
        train: published number of training images (of the default ID domain).
        evaluated: published number of images in its test part, shifts and stored corruptions.
        missing: what a place (None: the usual one) lacks, one sentence each. A quick look.
        classes: names of the classes, where they are known before the data is here.
        parts: published numbers of images by part and shift.
    """

    title: str
    how_to_get: str
    train: int
    evaluated: int
    missing: Callable[[Path | None], list[str]]
    classes: Callable[[], tuple[str, ...]] = tuple
    parts: Mapping[str, int] = field(default_factory=dict)


def _domain_entry(name: str, title: str, source: str) -> SuiteEntry:
    suite = DOMAIN_SUITES[name]
    counts = {domain: published[0] for domain, published in suite.images.items()}
    own = counts[suite.id_domain]
    return SuiteEntry(
        f"{title} ({sum(counts.values()):,} images, {suite.n_classes} classes, "
        f"{len(counts)} domains)",
        f"{source} Put the domains' folders ({', '.join(counts)}) side by side in one folder and "
        f"name it in {variable_of(name)} or as {name}:PATH; {name}:DOMAIN or {name}:PATH#DOMAIN "
        f"chooses the ID data, {suite.id_domain} by default.",
        train=round(0.6 * own),
        evaluated=round(0.2 * own) + sum(counts.values()) - own,
        missing=lambda path: domains_missing(name, suite_folder(name, path)),
        parts=counts,
    )


def _cifar_entry(name: str, title: str) -> SuiteEntry:
    cifar = CIFAR[name]
    return SuiteEntry(
        f"{title} (60,000 images of 32 × 32 pixels, {len(cifar.classes)} classes)",
        "torchvision downloads it by itself when there is a network. Or name a folder that holds "
        f"{cifar.python[0]}/, {cifar.binary[0]}/ or train/ and test/ folders of class folders in "
        f"{variable_of(name)} or as {name}:PATH.",
        train=40_000,
        evaluated=10_000,
        missing=lambda path: cifar_missing(name, cifar_folder(name, path)),
        classes=lambda: cifar.classes,
        parts={"train": 50_000, "test": 10_000},
    )


def _cifar_c_entry(name: str, title: str) -> SuiteEntry:
    clean = name.removesuffix("-c")
    return SuiteEntry(
        f"{title} (CIFAR's test images under 15 stored corruptions at 5 severities)",
        f"Unpack the authors' archive (one .npy file for each corruption, and labels.npy) and name "
        f"its folder in {variable_of(name)} or as {name}:PATH; the clean images come from "
        f"{clean}. Or let calift compute them: suite {clean} with corruptions benchmark.",
        train=40_000,
        evaluated=10_000 * (1 + len(STORED_CORRUPTIONS) * len(SEVERITIES)),
        missing=lambda path: (
            cifar_missing(clean, cifar_folder(clean)) + cifar_c_missing(cifar_c_folder(name, path))
        ),
        classes=lambda: CIFAR[clean].classes,
        parts={"train": 50_000, "test": 10_000, "each corruption and severity": 10_000},
    )


def _imagenet_names() -> tuple[str, ...]:
    return tuple(label.split(",")[0] for label in imagenet_labels())


SUITES: dict[str, SuiteEntry] = {
    "fashion-mnist": SuiteEntry(
        "Fashion-MNIST (70,000 grey images of clothing, 10 classes)",
        "On Debian or Ubuntu: `apt-get install dataset-fashion-mnist`. Elsewhere torchvision "
        "downloads it by itself when there is a network. Or name a folder that holds the four IDX "
        "files in CALIFT_FASHION_MNIST.",
        train=10_000,
        evaluated=20_000,
        missing=_fashion_mnist_missing,
        parts={
            "pretrain": 40_000,
            "train": 10_000,
            "validation": 5_000,
            "calibration": 5_000,
            "test": 10_000,
        },
    ),
    "imagenet": SuiteEntry(
        "ImageNet with its shifts V2, R, A, Sketch and ObjectNet",
        "Put the data sets side by side in one folder and name it in CALIFT_IMAGENET or as "
        "imagenet:PATH: train/ and val/ (ILSVRC-2012, 1,000 class folders; image-net.org, after "
        "registration), imagenetv2-matched-frequency-format-val/, imagenet-r/, imagenet-a/, "
        "sketch/ and objectnet-1.0/ (images/ and mappings/) as their authors publish them. A shift "
        "that you do without is turned off by `shifts: {objectnet: none}`. calift never downloads "
        "them.",
        train=1_281_167,
        evaluated=sum(tree.n_images for name, tree in IMAGENET.items() if name != "train"),
        missing=lambda path: imagenet_missing(imagenet_folder(path)),
        classes=_imagenet_names,
        parts={name: tree.n_images for name, tree in IMAGENET.items()},
    ),
    "imagenet-c": SuiteEntry(
        "ImageNet-C (ImageNet's test images under 15 stored corruptions at 5 severities)",
        "Unpack the authors' archives so that one folder holds gaussian_noise/1/n01440764/… (with "
        "or without noise/, blur/, weather/ and digital/ above) and name it in CALIFT_IMAGENET_C "
        "or as imagenet-c:PATH, or put it into ImageNet's folder as imagenet-c/; train/ and val/ "
        "come from CALIFT_IMAGENET. Or let calift compute them: suite imagenet with corruptions "
        "benchmark.",
        train=1_281_167,
        evaluated=50_000 * (1 + len(STORED_CORRUPTIONS) * len(SEVERITIES)),
        missing=lambda path: (
            imagenet_missing(imagenet_folder(), ("train", "test"))
            + imagenet_c_missing(imagenet_c_folder(path))
        ),
        classes=_imagenet_names,
        parts={"train": 1_281_167, "test": 50_000, "each corruption and severity": 50_000},
    ),
    "cifar10": _cifar_entry("cifar10", "CIFAR-10"),
    "cifar100": _cifar_entry("cifar100", "CIFAR-100"),
    "cifar10-c": _cifar_c_entry("cifar10-c", "CIFAR-10-C"),
    "cifar100-c": _cifar_c_entry("cifar100-c", "CIFAR-100-C"),
    "pacs": _domain_entry(
        "pacs", "PACS", "Li et al. 2017; the authors and DomainBed offer the archive."
    ),
    "vlcs": _domain_entry("vlcs", "VLCS", "Fang et al. 2013; DomainBed offers the archive."),
    "office-home": _domain_entry(
        "office-home", "Office-Home", "Venkateswara et al. 2017; the authors offer the archive."
    ),
    "domainnet": _domain_entry(
        "domainnet", "DomainNet", "Peng et al. 2019; the authors offer one archive for each domain."
    ),
}


def available_suites() -> list[DatasetInfo]:
    """Every named suite, with what is here and what to do about what is not."""
    return [_info(name, entry) for name, entry in SUITES.items()]


def _info(name: str, entry: SuiteEntry) -> DatasetInfo:
    missing = entry.missing(None)
    detail = "on this machine"
    if missing:
        detail = entry.how_to_get
        if os.environ.get(variable_of(name)):  # somebody has begun: say what is left
            detail = f"Incomplete ({'; '.join(missing[:8])}). {detail}"
    return DatasetInfo(
        id=name,
        title=entry.title,
        available=not missing,
        detail=detail,
        classes=list(entry.classes()),
        parts=dict(entry.parts),
    )
