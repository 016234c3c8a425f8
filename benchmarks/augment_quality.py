"""The measures of new captions that need no model, against a minute of one core for 30,000 of them.

Self-BLEU is among them where sacrebleu is installed.
"""

import torch

from benchmarks.report import Row, cpu_seconds
from robustcli.data import Scenes
from robustcli.data.augment import Paraphrase
from robustcli.evaluation.caption_measures import CaptionMeasures
from robustcli.metrics import SelfBLEU
from robustcli.models.tokenizer import split_words
from robustcli.utils.errors import UserError

_MINUTE = 60.0


def run(*, quick: bool = False) -> list[Row]:
    """Paraphrases of scenes, five of each image or a few less."""
    images, number = (20, 100) if quick else (7900, 30_000)
    data = Scenes(split="train", train=images)
    pairs = [pair for pair in Paraphrase(number=5).pairs(data, range(images), seed=0)][:number]
    try:
        self_bleu: SelfBLEU | None = SelfBLEU()
    except UserError:
        self_bleu = None
    own = data.captions_of()
    measures = CaptionMeasures(
        new=[split_words(str(pair.caption)) for pair in pairs],
        item=torch.tensor([pair.source for pair in pairs]),
        own=[split_words(caption) for caption in data.captions],
        own_item=data.owner,
        sources=[own[pair.source].tolist() for pair in pairs],
        vocabulary={word for caption in data.captions for word in split_words(caption)},
        self_bleu=self_bleu,
        resamples=1000,
        seed=0,
    )
    seconds = cpu_seconds({"ours": measures.figures}, repeats=1)["ours"]
    note = f"{len(pairs):,} captions, {'with' if self_bleu else 'without'} self-BLEU"
    return [Row(what="text measures", against="a minute", ours=seconds, other=_MINUTE, at_most=1.0, note=note)]
