"""The sets of images of one size that torchvision downloads, in its layouts and read by its own readers.

Shapes: B batch, N images.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcli.data.base import rows_of
from robustcli.data.class_arrays import fingerprint_of
from robustcli.data.classes import ImageClassData, PixelClasses, held_out
from robustcli.data.files import check_fingerprint, check_positive
from robustcli.data.sources import SPLITS
from robustcli.utils.errors import UserError


class _FromTorchvision(PixelClasses):
    """A set of torchvision's in memory; it knows train and test, a share of train is val.

    torchvision checks the files against known sums before it reads them, so no foreign pickle is opened.

    Attributes:
        reader: its class in torchvision.datasets.
        word: of the reader's argument that says the split is a word; else ``train`` is true or false.
    """

    reader = ""
    word = False

    def __init__(
        self,
        root: str | Path,
        *,
        split: str,
        val_share: float = 0.1,
        fingerprint: str | Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> None:
        check_positive(limit=limit)
        check_known(split)
        source = "test" if split == "test" else "train"
        argument: dict[str, Any] = {"split": source} if self.word else {"train": source == "train"}
        stored = read_stored(self.reader, Path(root).expanduser(), argument)
        name = self.reader.lower()
        ids = np.array([f"{name}-{source}-{i:05d}" for i in range(len(stored.data))])
        rows = np.arange(len(ids))
        if split != "test":
            rows = rows[held_out(ids.tolist(), val_share).numpy() == (split == "val")]
        rows = rows[:limit]
        if not len(rows):
            raise UserError(f"the split {split!r} of {name} is empty: set dataset.val_share above 0.")
        labels = stored.targets if hasattr(stored, "targets") else stored.labels
        pixels, labels = _pixels(stored.data)[rows], np.asarray(labels, dtype=np.int64)[rows]
        classes = self.class_names(stored)
        super().__init__(
            name,
            split,
            pixels=torch.from_numpy(pixels),
            scale=255.0,
            labels=torch.from_numpy(labels),
            classes=classes,
            image_ids=ids[rows].tolist(),
            fingerprint=fingerprint_of(pixels, labels, classes, ids[rows].tolist()),
        )
        check_fingerprint(self, fingerprint, limit)

    def class_names(self, stored: Any) -> tuple[str, ...]:
        """Those of the reader. MNIST's calls them ``0 - zero``; they are the digits here, as in other sets of them."""
        return tuple(str(name).split(" - ")[0] for name in stored.classes)


class Cifar10(_FromTorchvision):
    """CIFAR-10 (Krizhevsky 2009): images (B,3,32,32) of ten classes, 50,000 to train and 10,000 to test.

    Args:
        root: folder that holds ``cifar-10-batches-py``.
        split: ``train``, ``val`` or ``test``.
        val_share: share of the training images that is ``val``, by a hash of their numbers.
        fingerprint: that the set must have, or one for each split; None: any.
        limit: the first so many images; None: all.

    Raises:
        UserError: the files are not there, or not those that torchvision knows.
    """

    reader = "CIFAR10"
    benchmark = "cifar10"


class Cifar100(_FromTorchvision):
    """CIFAR-100 (Krizhevsky 2009): images (B,3,32,32) of a hundred classes; ``root`` holds ``cifar-100-python``.

    Arguments and errors are those of `Cifar10`.
    """

    reader = "CIFAR100"
    benchmark = "cifar100"


class Mnist(_FromTorchvision):
    """MNIST (LeCun et al. 1998): digits (B,1,28,28), 60,000 to train and 10,000 to test; ``root`` holds ``MNIST/raw``.

    Arguments and errors are those of `Cifar10`.
    """

    reader = "MNIST"
    benchmark = "mnist"


class Stl10(_FromTorchvision):
    """STL-10 (Coates et al. 2011): images (B,3,96,96) of ten classes, 5,000 to train and 8,000 to test; ``root`` holds
    ``stl10_binary``.

    Arguments and errors are those of `Cifar10`.
    """

    reader = "STL10"
    word = True
    benchmark = "stl10"

    def class_names(self, stored: Any) -> tuple[str, ...]:
        """The lines of ``class_names.txt``, which the reader does without where it is absent."""
        if not hasattr(stored, "classes"):
            raise UserError(f"{stored.root}/{stored.base_folder} has no class_names.txt: unpack the archive anew.")
        return super().class_names(stored)


class Svhn(_FromTorchvision):
    """SVHN (Netzer et al. 2011), cropped digits (B,3,32,32): 73,257 to train and 26,032 to test; ``root`` holds
    ``train_32x32.mat`` and ``test_32x32.mat``.

    Arguments and errors are those of `Cifar10`.
    """

    reader = "SVHN"
    word = True
    benchmark = "svhn"

    def class_names(self, stored: Any) -> tuple[str, ...]:
        """The digits, of which the reader has no list."""
        return tuple("0123456789")


class Pcam(ImageClassData):
    """PatchCamelyon (Veeling et al. 2018): patches (B,3,96,96) without and with tumour, 262,144 to train, 32,768 each
    to validate and to test; read from the files batch by batch.

    torchvision checks no sums of them; the fingerprint is of what is read, which takes a second a gigabyte.

    Args:
        root: folder that holds ``pcam`` with its unpacked ``.h5`` files.
        split, fingerprint, limit: as for `Cifar10`.

    Raises:
        UserError: the files are not there, damaged, or h5py is not installed.
    """

    benchmark = "pcam"
    name = "pcam"
    classes = ("no tumour", "tumour")

    def __init__(
        self,
        root: str | Path,
        *,
        split: str,
        fingerprint: str | Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> None:
        check_positive(limit=limit)
        check_known(split)
        try:
            import h5py
        except ImportError:
            raise UserError(
                "dataset=pcam lies in HDF5 files, which take h5py: pip install 'robustcli[hdf5]'."
            ) from None
        stored = read_stored("PCAM", Path(root).expanduser(), {"split": split})
        files = {kind: stored._base_folder / each[0] for kind, each in stored._FILES[split].items()}
        try:
            self._pixels = h5py.File(files["images"])["x"]
            with h5py.File(files["targets"]) as targets:
                labels = np.asarray(targets["y"]).reshape(-1).astype(np.int64)
            if self._pixels.dtype != np.uint8 or self._pixels.shape != (len(labels), 96, 96, 3):
                raise ValueError(f"{len(labels)} labels for {self._pixels.dtype} of shape {self._pixels.shape}")
            if not np.isin(labels, (0, 1)).all():
                raise ValueError(f"a label {labels.max()}")
            self.labels = torch.from_numpy(labels[:limit])
            self.fingerprint = self._content()
        except (OSError, LookupError, ValueError, TypeError) as error:
            raise UserError(
                f"{files['images']} and {files['targets'].name} cannot be read ({error}): unpack them anew."
            ) from error
        self.split, self.image_ids = split, [f"pcam-{split}-{i:06d}" for i in range(len(self.labels))]
        check_fingerprint(self, fingerprint, limit)

    def images(self, indices: Tensor) -> Tensor:
        rows = rows_of(indices, len(self))
        # HDF5 takes places in rising order, each once.
        places, back = np.unique(rows.numpy(), return_inverse=True)
        pixels = torch.from_numpy(np.asarray(self._pixels[places]) if len(places) else np.empty((0, 96, 96, 3), "u1"))
        return pixels[torch.from_numpy(back)].permute(0, 3, 1, 2).float().div_(255).contiguous()

    def _content(self) -> str:
        """sha256 (hex) of labels and pixels."""
        digest = hashlib.sha256(json.dumps([self.classes, self.labels.tolist()]).encode())
        for start in range(0, len(self.labels), 1024):
            digest.update(np.ascontiguousarray(self._pixels[start : min(start + 1024, len(self.labels))]).data)
        return digest.hexdigest()


def check_known(split: str) -> None:
    """`UserError` for a split that no set has."""
    if split not in SPLITS:
        raise UserError(f"dataset has no split {split!r}: choose one of {', '.join(SPLITS)}.")


def read_stored(reader: str, root: Path, arguments: Mapping[str, Any], *, holds: str = "", source: str = "") -> Any:
    """The data set that torchvision's ``reader`` finds below ``root``, whose files it checks where it has their sums.

    Args:
        arguments: of the reader, beside the folder.
        holds: path below ``root`` that must be there: some readers would make it.
        source: where the files come from, for a set that torchvision does not download; empty: it does.

    Raises:
        UserError: they are not there, or not those that it knows.
    """
    from torchvision import datasets

    line, cause = f"there is no {root / holds}", None
    try:
        if not holds or (root / holds).exists():
            return getattr(datasets, reader)(str(root), **arguments, download=False)
    except Exception as error:  # the parsers of lists and .mat raise whatever they meet in damaged bytes
        line, cause = next(iter(str(error).splitlines()), type(error).__name__), error
    words = ", ".join([f"'{root}'", *(f"{key}={value!r}" for key, value in arguments.items() if key != "train")])
    remedy = source or (
        f'download it once, `python -c "from torchvision.datasets import {reader}; {reader}({words}, download=True)"`'
    )
    raise UserError(
        f"dataset.root is {root}, where torchvision finds no whole {reader} ({line}): {remedy}, or set dataset.root to "
        "where it is."
    ) from cause


def _pixels(data: Any) -> NDArray[np.uint8]:
    """(N,C,H,W) of the readers' (N,H,W,3) and (N,3,H,W) arrays or (N,H,W) tensors."""
    array = np.asarray(data)
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[-1] == 3:
        array = array.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(array)
