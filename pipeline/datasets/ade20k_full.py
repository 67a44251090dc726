"""The whole ADE20K (2021-01-17): the 847 classes that occur in training and in validation.

Their names and ids are read from the index of the download, whose order they keep (ascending id);
published lists are ordered by frequency. Metrics do not depend on the order; to fix one, give a
vocabulary of names of that index.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.maps import decode_ade_full
from pipeline.datasets.plan import (
    DatasetEntry,
    Pair,
    Plan,
    Request,
    check_apart,
    check_images,
    find_folder,
    number_names,
    pair_all,
)
from pipeline.models.pickled import read_pickle
from schemas.errors import DatasetError, ModelError
from schemas.vocabulary import Vocabulary, read_vocabulary

NUM_CLASSES: Final = 847

_FOLDERS: Final = {"train": "training", "val": "validation"}
_IMAGES: Final = {"train": 25_574, "val": 2_000}
_HOME, _DOWNLOAD = "ADE20K_2021_17_01", "ADE20K_2021_17_01.zip"
_INDEX: Final = "index_ade20k.pkl"
_LABEL_END: Final = "_seg.png"
_UNLABELLED: Final = 0


def _plan(request: Request) -> Plan:
    home = find_folder(request.source, (_HOME,), _DOWNLOAD)
    index_file = home / _INDEX
    index = _read_index(index_file)
    # Ids count from 1.
    names = dict(enumerate((str(name).strip() for name in index["objectnames"]), start=1))
    if request.vocabulary:
        vocabulary = read_vocabulary(request.vocabulary)
        index_of = _find_ids(vocabulary, names, request.vocabulary)
    else:
        kept, index_of = number_names({id_: names[id_] for id_ in _shared_ids(index, index_file)})
        if not request.partial and len(kept) != NUM_CLASSES:
            raise DatasetError(
                f"{index_file} has {len(kept)} classes in training and validation, officially "
                f"{NUM_CLASSES}; give a --vocabulary of the names to keep, or --partial"
            )
        vocabulary = Vocabulary.of(kept)
    splits = {split: _pairs(home, folder) for split, folder in _FOLDERS.items()}
    check_images(splits, _IMAGES, request.partial)
    check_apart(splits)
    others = frozenset({_UNLABELLED, *names}) - index_of.keys()
    return Plan(vocabulary, index_of, others, splits, decode_ade_full)


def _pairs(home: Path, folder: str) -> list[Pair]:
    top = find_folder(home, (f"images/ADE/{folder}",), _DOWNLOAD)
    images = {path.stem: path for path in top.rglob("*.jpg")}
    labels = {path.name.removesuffix(_LABEL_END): path for path in top.rglob(f"*{_LABEL_END}")}
    return pair_all(images, labels)


def _read_index(path: Path) -> Mapping[str, Any]:
    """Return the index, which runs nothing: names but those of plain arrays are refused."""
    if not path.is_file():
        raise DatasetError(f"there is no {path}; unpack {_DOWNLOAD} there")
    try:
        index = read_pickle(path)
    except ModelError as error:
        raise DatasetError(str(error).partition("; save its weights")[0]) from None
    wanted = ("objectnames", "objectPresence", "objectIsPart", "folder")
    missing = [key for key in wanted if not isinstance(index, dict) or key not in index]
    if missing:
        raise DatasetError(f"{path} has no {', '.join(missing)}; it is not the index of ADE20K")
    return dict(index)


def _shared_ids(index: Mapping[str, Any], path: Path) -> list[int]:
    """Return the ids of classes that are a whole object in images of both splits.

    Dimension key: K ids, N images.
    """
    try:
        present_KN = np.asarray(index["objectPresence"], np.int32)
        objects_KN = present_KN > np.asarray(index["objectIsPart"], np.int32)
        in_both_K = np.ones(len(index["objectnames"]), np.bool_)
        for folder in _FOLDERS.values():
            in_both_K &= objects_KN[:, _is_in(index["folder"], folder)].any(axis=1)
    except (TypeError, ValueError, IndexError) as error:
        raise DatasetError(f"{path} has arrays that do not fit: {error}") from None
    return [int(position) + 1 for position in np.flatnonzero(in_both_K)]


def _is_in(folders_N: Sequence[str], name: str) -> NDArray[np.bool_]:
    return np.array([name in PurePosixPath(str(folder)).parts for folder in folders_N], np.bool_)


def _find_ids(vocabulary: Vocabulary, names: Mapping[int, str], path: Path) -> dict[int, int]:
    """Return the class index of every id that bears a name of the vocabulary."""
    position = {name: index for index, name in enumerate(vocabulary.names)}
    unknown = [name for name in position if name not in set(names.values())]
    if unknown:
        raise DatasetError(f"{path} has {unknown[0]!r}, which is no object of ADE20K's index")
    return {id_: position[name] for id_, name in names.items() if name in position}


ADE20K_847 = DatasetEntry(
    summary=f"{NUM_CLASSES} classes of the whole ADE20K, named by its index",
    downloads=(_DOWNLOAD,),
    plan=_plan,
    images=_IMAGES,
    takes=frozenset({"vocabulary"}),
)
