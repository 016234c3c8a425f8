"""Denoising diffusion models of images (Ho et al. 2020), unconditional, on the UNet of diffusers.

Shapes: B batch, C channels, H height, W width, N steps; T levels of noise of the training.
"""

import json
import math
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from robustcli.models.generators.trained import Trained
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


class DDPM(Trained):
    """A denoising diffusion model with random weights; `load` reads one from a file or a folder of diffusers.

    Args:
        configuration: ``resolution`` (C,H,W); ``unet``: settings of diffusers' ``UNet2DModel``; and optionally
            ``schedule``, under diffusers' names: ``num_train_timesteps``, ``beta_schedule`` (linear, scaled_linear or
            squaredcos_cap_v2), ``beta_start``, ``beta_end``, ``prediction_type`` (epsilon, v_prediction or sample).
        seed: of the weights; the global generator is left alone.

    Raises:
        UserError: diffusers is missing, or settings that it refuses.
    """

    kind: ClassVar[str] = "ddpm"

    def __init__(self, configuration: Mapping[str, Any], *, seed: int = 0) -> None:
        super().__init__()
        channels, height, width = (int(side) for side in configuration["resolution"])
        self.resolution = (channels, height, width)
        given = configuration.get("schedule") or {}
        self._schedule = {
            **_SCHEDULE,
            "prediction_type": "epsilon",
            **{k: v for k, v in given.items() if v is not None},
        }
        _check(self._schedule)
        own = {"sample_size": [height, width], "in_channels": channels, "out_channels": channels}
        self._unet = {**own, **configuration["unet"]}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.unet: nn.Module = _unet(self._unet)
        # On the CPU and no buffer: a setting that files leave out, and a model is built without memory (`meta`) first.
        self.signal = _signal(self._schedule)
        self.eval()

    @property
    def configuration(self) -> dict[str, Any]:
        return {"resolution": list(self.resolution), "unet": self._unet, "schedule": self._schedule}

    @property
    def levels(self) -> int:
        """T, the levels of noise of the training."""
        return len(self.signal)

    def noised(self, images: Tensor, level: Tensor, eps: Tensor) -> Tensor:
        """``sqrt(a) x + sqrt(1 - a) eps`` with a the signal of ``level`` (B,), x the images in [0,1] put to [-1,1]."""
        signal = self.signal.to(images)[level.to(self.signal.device)].view(-1, 1, 1, 1)
        return signal.sqrt() * (2.0 * images - 1.0) + (1.0 - signal).sqrt() * eps

    def predicted(self, x: Tensor, level: int | Tensor) -> Tensor:
        """The noise (B,C,H,W) that the network sees in ``x``, whatever it was trained to predict."""
        levels = torch.as_tensor(level, device=x.device).expand(len(x))
        out: Tensor = self.unet(x, levels, return_dict=False)[0]
        out = out[:, : self.resolution[0]]  # others, where they are, are a learned variance
        signal = self.signal.to(x)[levels.to(self.signal.device)].view(-1, 1, 1, 1)
        match self._schedule["prediction_type"]:
            case "v_prediction":
                return signal.sqrt() * out + (1.0 - signal).sqrt() * x
            case "sample":
                return (x - signal.sqrt() * out) / (1.0 - signal).sqrt()
        return out

    def reverse_step(self, x: Tensor, level: int, lower: int | None, eps: Tensor) -> Tensor:
        """A draw of ``x`` at level ``lower`` from that at ``level`` (ancestral; Ho et al. 2020, equations 7 and 11,
        between levels that need not be neighbours); ``lower`` None: the mean without noise, the image in [-1,1].

        The image that the noise implies is cut to [-1,1], as is usual.
        """
        here = float(self.signal[level])
        below = 1.0 if lower is None else float(self.signal[lower])
        noise = self.predicted(x, level)
        clean = ((x - math.sqrt(1.0 - here) * noise) / math.sqrt(here)).clamp(-1.0, 1.0)
        kept = here / below  # the signal that is lost between the two levels
        mean = (
            math.sqrt(below) * (1.0 - kept) / (1.0 - here) * clean + math.sqrt(kept) * (1.0 - below) / (1.0 - here) * x
        )
        deviation = math.sqrt((1.0 - below) / (1.0 - here) * (1.0 - kept))
        return mean + deviation * eps

    def drawn(self, images: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        """A level (B,) and noise (B,C,H,W) for each image, named by ``seed``."""
        source = generator(seed, "ddpm")
        level = torch.randint(self.levels, (len(images),), generator=source)
        return level, torch.randn(images.shape, generator=source).to(images)

    def figures(self, images: Tensor, *, seed: int) -> Mapping[str, Tensor]:
        """``noise_mse``: squared error of the noise at a level drawn for each image (Ho et al. 2020, equation 14)."""
        level, eps = self.drawn(images, seed=seed)
        wrong = self.predicted(self.noised(images, level, eps), level) - eps
        low = torch.full_like(level, self.levels // 10)
        noise = self.predicted(self.noised(images, low, eps), low) - eps
        return {"noise_mse": wrong.square().mean((1, 2, 3)), "noise_mse_tenth": noise.square().mean((1, 2, 3))}

    def rebuilt(self, images: Tensor, *, seed: int) -> Tensor:
        """Images after a tenth of the noise was put on and taken away again in 10 steps."""
        source = generator(seed, "ddpm")
        levels = spaced(self.levels, 0.1, 10)
        noise = [torch.randn(images.shape, generator=source).to(images) for _ in range(len(levels) + 1)]
        x = self.noised(images, torch.full((len(images),), levels[0]), noise[0])
        for place, level in enumerate(levels):
            x = self.reverse_step(x, level, levels[place + 1] if place + 1 < len(levels) else None, noise[place + 1])
        return (0.5 * x + 0.5).clamp(0, 1)

    def sampled(self, count: int, *, seed: int) -> Tensor:
        """Samples in 50 steps."""
        source, levels = generator(seed, "ddpm samples"), spaced(self.levels, 1.0, min(50, self.levels))
        shape = (count, *self.resolution)
        x = torch.randn(shape, generator=source).to(self.device)
        for place, level in enumerate(levels):
            lower = levels[place + 1] if place + 1 < len(levels) else None
            x = self.reverse_step(x, level, lower, torch.randn(shape, generator=source).to(self.device))
        return (0.5 * x + 0.5).clamp(0, 1)

    @classmethod
    def load(cls, path: str | Path, *, shipped: str | None = None, **settings: Any) -> Self:
        """A frozen network in eval mode.

        Args:
            path: .safetensors of ``train-generator``; or a folder of diffusers: a pipeline with ``unet/`` and
                ``scheduler/``, or a ``UNet2DModel`` with its ``config.json``, taken for one of the linear schedule.
            shipped: name of the package's own file that ``path="shipped"`` stands for.

        Raises:
            UserError: no such file, damaged, or of another network.
        """
        folder = Path(path).expanduser()
        if str(path) == "shipped" or not folder.is_dir() or not _is_diffusers(folder):
            return super().load(path, shipped=shipped, **settings)
        return cls._of_folder(folder)

    @classmethod
    def _of_folder(cls, folder: Path) -> Self:
        below = folder / "unet" if (folder / "unet").is_dir() else folder
        scheduler = folder / "scheduler" / "scheduler_config.json"
        try:
            with torch.random.fork_rng(devices=[]):  # the library draws weights before it reads them
                found = _diffusers().UNet2DModel.from_pretrained(
                    below, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
                )
            schedule = json.loads(scheduler.read_text("utf-8")) if scheduler.is_file() else {}
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise UserError(f"{folder} cannot be read as an unconditional UNet of diffusers ({error}).") from error
        config, size = dict(found.config), found.config.sample_size
        if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
            raise UserError(f"the UNet in {folder} is conditional on classes: DiffPure takes an unconditional one.")
        if str(schedule.get("_class_name", "")).startswith(("ScoreSdeVe", "Karras", "EDM", "Euler")):
            raise UserError(
                f"{folder} has the scheduler {schedule['_class_name']}, whose noise explodes in place of keeping the "
                "variance: take a model of DDPM or DDIM."
            )
        height, width = (size, size) if isinstance(size, int) else size
        names = (*_SCHEDULE, "prediction_type")
        settings = {key: value for key, value in config.items() if not key.startswith("_")}
        configuration = {
            "resolution": [int(config["in_channels"]), int(height), int(width)],
            "unet": settings,
            "schedule": {name: schedule[name] for name in names if name in schedule},
        }
        with torch.device("meta"):
            model = cls(configuration)
        model.unet = found.float()
        return model.requires_grad_(False).eval()


def spaced(levels: int, share: float, steps: int) -> list[int]:
    """Levels from that of ``share`` of all T down to 0, ``steps`` of them or as many as there are, evenly spaced."""
    top = max(1, round(share * levels))  # number of levels that are undone
    count = min(steps, top)
    return [round((top - 1) * (1 - place / max(count - 1, 1))) for place in range(count)]


def _signal(schedule: Mapping[str, Any]) -> Tensor:
    """Share (T,) of the variance that is signal at each level, under diffusers' names of the schedules."""
    levels = int(schedule["num_train_timesteps"])
    first, last = float(schedule["beta_start"]), float(schedule["beta_end"])
    with torch.device("cpu"):
        match schedule["beta_schedule"]:
            case "linear":
                betas = torch.linspace(first, last, levels, dtype=torch.float64)
            case "scaled_linear":
                betas = torch.linspace(first**0.5, last**0.5, levels, dtype=torch.float64).square()
            case _:  # Nichol and Dhariwal 2021, equation 17
                places = torch.arange(levels + 1, dtype=torch.float64) / levels
                kept = torch.cos((places + 0.008) / 1.008 * math.pi / 2).square()
                betas = (1 - kept[1:] / kept[:-1]).clamp(max=0.999)
        return torch.cumprod(1.0 - betas, 0)


def _check(schedule: Mapping[str, Any]) -> None:
    if schedule["beta_schedule"] not in _SCHEDULES:
        raise UserError(f"the schedule is {schedule['beta_schedule']!r}: known are {', '.join(_SCHEDULES)}.")
    if schedule["prediction_type"] not in _PREDICTIONS:
        raise UserError(f"the UNet predicts {schedule['prediction_type']!r}: known are {', '.join(_PREDICTIONS)}.")
    if (
        not 1 <= int(schedule["num_train_timesteps"]) <= 100_000
        or not 0 < schedule["beta_start"] <= schedule["beta_end"] < 1
    ):
        raise UserError("the schedule of a DDPM has 1 to 100,000 timesteps, and 0 < beta_start <= beta_end < 1.")


def _unet(settings: Mapping[str, Any]) -> nn.Module:
    try:
        made: nn.Module = _diffusers().UNet2DModel(**settings)
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"generator.unet makes no UNet2DModel of diffusers ({error}).") from error
    return made


def _diffusers() -> Any:
    try:
        return import_module("diffusers")
    except ImportError as error:
        raise UserError(f"a DDPM needs diffusers ({error}): install robustcli[diffusion].") from error


def _is_diffusers(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "unet" / "config.json").is_file()
