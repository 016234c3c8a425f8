"""Table of the commands that take Hydra overrides: name, engine and examples."""

from collections.abc import Mapping
from dataclasses import dataclass

from robustcli.config import groups as config_groups
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean

# What commands answer, in the order of the help.
QUESTIONS = JUDGE, TRAIN, RESULTS, CHECK, LOOK = (
    "How robust is it?",
    "How does it become more robust?",
    "What came out?",
    "Is the result true?",
    "What can be asked for, and is this machine ready?",
)


@dataclass(frozen=True)
class Command:
    """A command whose options are Hydra overrides.

    Attributes:
        name: as typed.
        engine: module of ``robustcli.engines`` with ``load(config)`` and ``run(config, run)``.
        question: one of `QUESTIONS`, which it answers.
        examples: arguments after ``robustcli NAME``.
    """

    name: str
    engine: str
    question: str
    examples: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One line from the first comment of the command's primary config."""
        return config_groups.summary(config_groups.conf_directory() / f"{self.name.replace('-', '_')}.yaml")


COMMANDS: Mapping[str, Command] = {
    command.name: command
    for command in (
        Command(
            "evaluate",
            "evaluate",
            JUDGE,
            (
                "checkpoint=outputs/train-mat/2026-01-31/12-00-00-4f1c2a/checkpoints/last.safetensors",
                "'checkpoints={clean: clean.safetensors, mat: mat.safetensors}' attacks=quick",
                "dataset=class_folders dataset.root=photos 'dataset.classes=[cat,dog]' model=torchvision "
                "model.architecture=resnet18 model.classes=null checkpoint=mine.pt",
            ),
        ),
        Command(
            "attack",
            "attack",
            JUDGE,
            ("attack=sga eps=2/255 threat.words=1", "attack=pgd checkpoint=model.safetensors"),
        ),
        Command(
            "purify",
            "purify",
            JUDGE,
            (
                "",
                "purifier.alphas=linear purifier.attenuation=0.5 evaluation.eot=4",
                "'variants={linear: {alphas: linear}, cosine: {alphas: cosine}}' baselines=null",
                "dataset=scene_classes model=scene_classes",
            ),
        ),
        Command(
            "train-mat",
            "train",
            TRAIN,
            (
                "",
                "dataset=flickr30k model=vit_b_16 defense=mat eps=4/255 seed=3",
                "--multirun seed=0,1,2 defense=mat,tecoa hydra/launcher=joblib",
                "trainer.batch_size=16 trainer.accumulation=4 trainer.devices=2 trainer.negatives=step",
                "resume=outputs/train-mat/2026-01-31/12-00-00-4f1c2a",
            ),
        ),
        Command(
            "train-classifier",
            "train",
            TRAIN,
            (
                "",
                "dataset=digits model=digits augmentation.shift=1 attacks=strong",
                "dataset=cifar10 model=resnet20_cifar augmentation.shift=4 augmentation.flip=true trainer=long",
            ),
        ),
        Command(
            "train-generator",
            "train",
            TRAIN,
            (
                "",
                "dataset=mnist generator=nvae_mnist trainer.max_steps=2000",
                "dataset=class_folders dataset.root=faces 'dataset.classes=[a,b]' dataset.image_size=64 "
                "generator=nvae_64",
            ),
        ),
        Command(
            "learn-alphas",
            "learn_alphas",
            TRAIN,
            (
                "",
                "'objectives=[adversarial,clean]' trials=100",
                "alphas.against=adaptive alphas.steps=10 trials=20",
                "alphas=mutual_information",
                "dataset=scene_classes model=scene_classes eps=2 sampler=tpe",
            ),
        ),
        Command(
            "augment",
            "augment",
            TRAIN,
            (
                "",
                "augment=redraw augment.number=2 augment.misaligned=.25",
                "dataset=flickr30k dataset.captions_per_image=1 augment=captions",
            ),
        ),
        Command(
            "augment-quality",
            "augment_quality",
            TRAIN,
            (
                "'dataset.augmentations=[outputs/augment/2026-01-31/12-00-00-4f1c2a]'",
                "'dataset.augmentations={eda: runs/eda, llm: runs/llm}' dataset=flickr30k model@reference=vit_b_32 "
                "reference.pretrained=openai",
            ),
        ),
    )
}


def find(name: str) -> Command:
    """The command that is typed as ``name``.

    Raises:
        UserError: there is none.
    """
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}{did_you_mean(name, list(COMMANDS))} ({', '.join(COMMANDS)})")
    return COMMANDS[name]
