"""Parts of a set by split: files say it by their names, by a column, by ``holds``, or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass

from robustcli.data.sources import SPLITS, Record, splits_in, with_split
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import derive_seed


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Files and images of each split.

    Args:
        key: of the config that names the files, such as ``dataset.table``.
        pattern: their name; ``{split}`` in it stands for the split where each has files of its own.
        by_column: the file itself says the split of each image.
        holds: split that the file is of, whatever its name says; None: told by the name.
        val_share, test_share: shares of the training images that are ``val`` and ``test``, by a hash of their names; 0:
            these splits have files or rows of their own.

    Raises:
        UserError: an unknown split, shares out of range, or both a column and ``holds``.
    """

    key: str
    pattern: str
    by_column: bool = False
    holds: str | None = None
    val_share: float = 0.0
    test_share: float = 0.0

    def __post_init__(self) -> None:
        if self.holds is not None and self.holds not in SPLITS:
            raise UserError(f"dataset.holds is {self.holds!r}: choose one of {', '.join(SPLITS)}, or null.")
        if self.holds is not None and self.by_column:
            raise UserError("dataset.holds and dataset.split_column are both set: only one can say the split.")
        for name, share in (("val_share", self.val_share), ("test_share", self.test_share)):
            if not 0 <= share < 1:
                raise UserError(
                    f"dataset.{name} is {share}: it is a share of the training images, at least 0 and below 1."
                )
        if self.val_share + self.test_share >= 1:
            raise UserError(
                f"dataset.val_share and dataset.test_share are {self.val_share} and {self.test_share}: together they "
                "leave nothing to train on, expected a sum below 1."
            )

    def source(self, split: str) -> str:
        """The split whose files and rows hold the images of ``split``."""
        return "train" if (split == "val" and self.val_share) or (split == "test" and self.test_share) else split

    def file(self, split: str) -> str:
        """Name of the file with the images of ``split``.

        Raises:
            UserError: no such split, or a file that is of another split or does not say of which.
        """
        if split not in SPLITS:
            raise UserError(f"dataset has no split {split!r}: choose one of {', '.join(SPLITS)}.")
        source = self.source(split)
        if self.by_column or self.holds == source:
            return self.pattern.replace("{split}", source)
        if self.holds is not None:
            shares = ", or take val and test from it by dataset.val_share and test_share" * (self.holds == "train")
            raise UserError(
                f"{self.key} is {self.pattern!r}, which holds the split {self.holds!r} as dataset.holds says, but "
                f"{split!r} is asked for: name a file for each split, with {{split}} in the name{shares}."
            )
        whole = "{split}" not in self.pattern and not splits_in(self.pattern)
        if whole and source == "train" and (self.val_share or self.test_share):
            return self.pattern
        try:
            return with_split(self.pattern, source, self.key)
        except UserError as error:
            one = ", or say of one file what it is of: dataset.holds=test, or dataset.val_share and dataset.test_share."
            raise UserError(f"{str(error).removesuffix('.')}{one}") from None

    def take(self, records: Sequence[Record], split: str, where: str) -> list[Record]:
        """Those of the ``records`` of `source` that are of ``split``; `UserError` where a share rounds to nobody."""
        held = (("val", self.val_share), ("test", self.test_share))
        if self.source(split) != "train" or not (self.val_share or self.test_share):
            return list(records)

        def part(record: Record) -> str:
            draw, edge = derive_seed("held out", record.image_id) / 2**63, 0.0
            for name, share in held:
                edge += share
                if draw < edge:
                    return name
            return "train"

        taken = [record for record in records if part(record) == split]
        if records and not taken:
            raise UserError(
                f"the split {split!r} of {where} is empty, for it has {len(records)} images and dataset.val_share and "
                f"test_share are {self.val_share} and {self.test_share}: raise or lower the shares."
            )
        return taken
