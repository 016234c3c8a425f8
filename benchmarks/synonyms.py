"""The curve over the synonyms' frequency: `python -m benchmarks.synonyms SWEEP PICTURE.png` draws a sweep over it."""

import sys
from pathlib import Path

import pandas as pd

from robustcli.report.figures import lines

KNOB = "dataset.synonym_frequency"


def main(sweep: Path, picture: Path) -> None:
    """Draw recall@1 under Sep-Attack over the share of rarer words, one line a defence."""
    jobs = pd.read_csv(sweep / "sweep.csv")
    parts = [
        jobs[[KNOB, "defense"]].assign(
            direction=direction,
            **{f"recall{end}": jobs[f"after/sep/{direction}/recall_at_1{end}"] for end in ("", "_low", "_high")},
        )
        for direction in ("image_to_text", "text_to_image")
    ]
    label = "share of words written as a rarer synonym"
    lines(
        pd.concat(parts), picture, x=KNOB, y="recall", x_label=label, y_label="Recall@1, Sep-Attack (%)", by="defense"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
