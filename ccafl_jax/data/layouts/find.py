"""Finding data sets and images in folders: what the readers of all layouts share."""

import os
import pathlib
from collections.abc import Collection, Sequence

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_SEARCH_DEPTH = 3


def find_root(
    root: str | os.PathLike,
    required: Sequence[str],
    *,
    tree: str,
    folders: Collection[str] = (),
) -> pathlib.Path:
    """The folder at or below `root` (three levels at most) that holds all `required` entries.

    Args:
      root: the folder that a user named.
      required: files or folders below the one sought, e.g. ("query", "info/query_IDX.mat").
      tree: the expected tree, for messages.
      folders: names that folders of the data set have, in any case of letters: of several
        candidates the one that is, or lies in, such a folder below `root` is meant.

    Raises:
      FileNotFoundError: there is none; the message names what is missing.
      ValueError: there are several.
    """
    root = pathlib.Path(root).expanduser().absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; expected {tree}")
    complete, partial = _candidates(root, required)
    # Links to folders show one place under several paths: the first, shortest, stands for all.
    complete = list({os.path.realpath(path): path for path in reversed(complete)}.values())[::-1]
    if len(complete) > 1:
        known = {name.lower() for name in folders}
        named = [p for p in complete if known & {n.lower() for n in p.relative_to(root).parts}]
        complete = named if len(named) == 1 else complete
    if len(complete) == 1:
        return complete[0]
    if complete:
        raise ValueError(
            f"{root} holds {len(complete)} data sets, name one of them: "
            + ", ".join(str(path) for path in complete)
        )
    if partial:
        missing = [name for name in required if not (partial[0] / name).exists()]
        raise FileNotFoundError(f"{partial[0]} lacks {' and '.join(missing)}; expected {tree}")
    raise FileNotFoundError(
        f"no data set within {_SEARCH_DEPTH} levels below {root}; expected {tree}"
    )


def find_any_root(
    root: str | os.PathLike, alternatives: Sequence[Sequence[str]], *, tree: str
) -> tuple[pathlib.Path, int]:
    """Like :func:`find_root` for layouts that come in several forms.

    Args:
      root: the folder that a user named.
      alternatives: what each form requires, the preferred first.
      tree: the expected trees, for messages.

    Returns:
      The folder and the number of the form found in it.
    """
    error: OSError | None = None
    for form, required in enumerate(alternatives):
        try:
            return find_root(root, required, tree=tree), form
        except FileNotFoundError as found:
            # A form of which a part is there tells more than one of which nothing is.
            tells_more = " lacks " in str(found) and " lacks " not in str(error)
            if error is None or tells_more:
                error = found
    assert error is not None
    raise error


def list_images(folder: str | os.PathLike, *, recursive: bool = False) -> tuple[list[str], int]:
    """Names of the images in a folder, sorted, and the number of other entries.

    A folder that is named like an image is no image, nor is a link that leads to a folder or back
    to itself. A link to nothing counts as an image: reading it then fails by name.

    Args:
      folder: to look into.
      recursive: also look into folders below, links to folders excepted (they may loop).

    Returns:
      Paths below `folder` with "/" between folders, and how many other entries (when recursive:
      other files) there are.
    """
    images, others = [], 0
    if not recursive:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_image_name(entry.name) and not is_folder(entry):
                    images.append(entry.name)
                else:
                    others += 1
        return sorted(images), others
    for path, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        below = os.path.relpath(path, folder)
        prefix = "" if below == "." else below.replace(os.sep, "/") + "/"
        found = [prefix + name for name in files if is_image_name(name)]
        images += found
        others += len(files) - len(found)
    return sorted(images), others


def is_image_name(name: str) -> bool:
    """Whether a base name ends like an image; hidden files (such as `._0001.jpg`) are none."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def is_folder(entry: os.DirEntry, *, circular: bool = True) -> bool:
    """Whether an entry is, or links to, a folder; `circular` is for links that lead in a circle."""
    try:
        return entry.is_dir()
    except OSError:
        return circular


def subfolders(folder: str | os.PathLike) -> list[str]:
    """Names of the folders in a folder, sorted; links that lead in a circle are none.

    A folder that may not be read has none.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if is_folder(entry, circular=False))
    except OSError:
        return []


def _candidates(
    root: pathlib.Path, required: Sequence[str]
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Folders at most `_SEARCH_DEPTH` levels down that hold all, or some, of the entries."""
    complete, partial = [], []
    level = [root]
    for depth in range(_SEARCH_DEPTH + 1):
        below = []
        for folder in level:
            present = sum(_exists(folder / name) for name in required)
            if present == len(required):
                complete.append(folder)
                continue
            if present:
                partial.append(folder)
            if depth < _SEARCH_DEPTH:
                own = {name.split("/")[0] for name in required}
                names = (n for n in subfolders(folder) if not n.startswith(".") and n not in own)
                below += [folder / name for name in names]
        level = below
    return complete, partial


def _exists(path: pathlib.Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a loop of symbolic links, or a folder that may not be read
        return False
