"""What the layouts of visible and infrared images share."""

import numpy as np

from ccafl_jax.data.records import Collection, Records, ReIDDataset


def check_one_to_one(label: np.ndarray, pid: np.ndarray, where: str) -> None:
    """Checks that labels and identities divide the images in the same way.

    Args:
      label: int[n].
      pid: int[n].
      where: named in the message.

    Raises:
      ValueError: a label stands for two identities, or an identity has two labels.
    """
    pairs = np.unique(np.stack([label, pid], axis=1), axis=0)
    for column, text in ((0, "label {} stands for ids {}"), (1, "id {} has labels {}")):
        values, counts = np.unique(pairs[:, column], return_counts=True)
        if np.any(counts > 1):
            value = values[counts > 1][0]
            others = pairs[pairs[:, column] == value, 1 - column]
            named = " and ".join(str(other) for other in others[:2])
            raise ValueError(
                f"{where}: {text.format(value, named)}; expected one label per id: take labels "
                "and paths from the same download"
            )


def assemble(
    collection: Collection, train: Records, query: Records, gallery: Records, *, unused: int = 0
) -> ReIDDataset:
    """A data set of records taken from a collection.

    Args:
      collection: it was taken from.
      train: training images.
      query: query images.
      gallery: gallery images.
      unused: test images that are neither query nor gallery.
    """
    report = {
        "train": {**collection.report.get("train", {}), "read": len(train)},
        "query": {"read": len(query)},
        "gallery": {"read": len(gallery), "test images not drawn": unused},
        "warnings": tuple(collection.report.get("warnings", ())),
    }
    return ReIDDataset(
        name=collection.name,
        root=collection.root,
        train=train,
        query=query,
        gallery=gallery,
        camera_codes=collection.camera_codes,
        report=report,
    )
