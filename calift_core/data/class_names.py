"""What the text tower reads for each class: named sets, and single names that replace theirs."""

from collections.abc import Mapping, Sequence

from calift_core.data.suites.imagenet import imagenet_labels, imagenet_wnids
from calift_core.errors import SpecError, UnknownNameError

#: The key of `suite.class_names` that names a set for all classes.
ALL = "*"
#: suite: what the suite's loader gives; folder: the class folder's own name; openai_imagenet: the
#: 1,000 names that CLIP's authors chose; wordnet: the first of WordNet's synonyms.
CLASS_NAME_SETS = ("suite", "folder", "openai_imagenet", "wordnet")


def resolve_class_names(
    chosen: Mapping[str, str], classes: Sequence[str], defaults: Sequence[str] | str
) -> tuple[str, ...]:
    """The words for each class.

    Args:
        chosen: class folder → words, and `*` → a set of `CLASS_NAME_SETS` for all others.
        defaults: C names of the set `suite`, or the set that it is the same as.

    Raises:
        UnknownNameError: no set has this name.
        SpecError: a class is not in the suite, or a set is for ImageNet's classes only.
    """
    unknown = sorted(set(chosen) - set(classes) - {ALL})
    if unknown:
        raise SpecError(
            f"class_names names {unknown}, which the suite does not have; "
            f"it has {list(classes)[:20]}"
        )
    name = chosen.get(ALL, "suite")
    if name == "suite":
        names = _named_set(defaults, classes) if isinstance(defaults, str) else defaults
    else:
        names = _named_set(name, classes)
    return tuple(chosen.get(c, name) for c, name in zip(classes, names, strict=True))


def _named_set(name: str, classes: Sequence[str]) -> Sequence[str]:
    match name:
        case "folder":
            return [c.replace("_", " ") for c in classes]
        case "openai_imagenet":
            from open_clip import IMAGENET_CLASSNAMES

            return _of_imagenet(name, classes, IMAGENET_CLASSNAMES)
        case "wordnet":
            return _of_imagenet(name, classes, [s.split(",")[0] for s in imagenet_labels()])
        case _:
            raise UnknownNameError("set of class names", name, CLASS_NAME_SETS)


def _of_imagenet(name: str, classes: Sequence[str], names: Sequence[str]) -> list[str]:
    by_wnid = dict(zip(imagenet_wnids(), names, strict=True))
    others = [c for c in classes if c not in by_wnid]
    if others:
        raise SpecError(
            f"the class names {name!r} are for class folders that are WordNet ids of ImageNet, "
            f"got {others[:5]}"
        )
    return [by_wnid[c] for c in classes]
