"""``python -m benchmarks gpu_check [--tiny]``: the parts on a CUDA device in minutes, in one table.

Each row is a process of its own (with ``--tiny`` it is not), so that one that fails, hangs or runs out of memory is a
row that says so. Times are those of the wall, with the device waited for. The floor of a row is the same passes through
the same network, written bare. *waits* counts the operations of one more step at which the host waits for the device.
``--tiny`` runs all rows with small networks on a CPU, where nothing is measured that only a GPU has.

Shapes: B images, R draws.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.purification import SIZES, faces
from benchmarks.setting import Setting
from robustcli.attacks import APGD, PGD, Square, SynonymTable, WordSubstitution
from robustcli.attacks.core.frozen import frozen
from robustcli.config.compose import compose
from robustcli.data import Digits, Scenes
from robustcli.data.scenes import synonym_table
from robustcli.defenses import PurifiedClassifier, Purifier
from robustcli.models import Classifier, DualEncoder, load_classifier, load_dual, small_cnn
from robustcli.models.generators import FACES, NVAE, E4EEncoder, StyleGAN2, StyleMixing

LIMIT = 150.0  # seconds of a row, of which all together should stay within eight minutes
CLOSE, SAME = 5e-3, 0.98  # what CPU and GPU may differ by in unit features; the share of verdicts that must agree
NO_GPU = "no GPU"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One measurement.

    Args:
        what: the work.
        seconds, floor: of the work and of the bare passes; None: not measured.
        peak: GiB of the device's memory that were held at once; None: no GPU.
        waits: of the host for the device, in one more step; None: no GPU, or not counted.
        note: what a reader must know.
        failed: the row has no measurement, or one that must not be; ``note`` says why.
    """

    what: str
    seconds: float | None = None
    floor: float | None = None
    peak: float | None = None
    waits: float | None = None
    note: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Bench:
    """Device and sizes of a run."""

    tiny: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.tiny else "cuda")

    def timed(self, call: Callable[[], object], repeats: int = 5) -> tuple[float, float | None]:
        """Median seconds of ``call`` and the most memory (GiB) that it held, after one that warms up."""
        if self.tiny:  # what it takes is nobody's business there
            started = time.perf_counter()
            call()
            return time.perf_counter() - started, None
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            call()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds), torch.cuda.max_memory_allocated() / (1 << 30)

    def line(self, what: str, call: Callable[[], object], floor: Callable[[], object], note: str = "") -> Line:
        seconds, peak = self.timed(call)
        return Line(what=what, seconds=seconds, floor=self.timed(floor)[0], peak=peak, note=note)

    def waits(self, of_steps: Callable[[int], object], few: int, many: int) -> tuple[float | None, str]:
        """Waits of one more step of ``of_steps(number)``, and the lines of Python with most of them."""
        if self.tiny:
            of_steps(few)
            return None, NO_GPU
        counts = []
        for steps in (few, many):
            of_steps(steps)
            with _counted_waits() as places:
                of_steps(steps)
            counts.append(places)
        more = counts[1] - counts[0]
        where = ", ".join(f"{place} x{number / (many - few):g}" for place, number in more.most_common(4))
        return sum(more.values()) / (many - few), where

    def encoder(self) -> DualEncoder:
        """ViT-B/16 with its text tower and random weights, or `tiny`, frozen."""
        large = {"name": "open_clip", "architecture": "ViT-B-16", "pretrained": None, "seed": 0}
        return load_dual("tiny" if self.tiny else large).eval().requires_grad_(False).to(self.device)

    @cache  # noqa: B019, a few settings of a process
    def setting(self, batch_size: int) -> Setting:
        """A training step of MAT on two batches, with such an encoder."""
        large = () if self.tiny else ("model=open_clip", "model.architecture=ViT-B-16")
        return Setting.of(batches=2, batch_size=batch_size, overrides=large, device=self.device)

    def classifier(self, classes: int = 10) -> Classifier | nn.Module:
        """The image tower before random class vectors."""
        return _Head(self.encoder(), classes).to(self.device)

    def images(self, count: int) -> Tensor:
        side = 32 if self.tiny else 224
        return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)).to(self.device)


class _Head(nn.Module):
    def __init__(self, encoder: DualEncoder, classes: int) -> None:
        super().__init__()
        width = encoder.encode_text(encoder.tokenize(["a"])).shape[1]
        draw = torch.Generator().manual_seed(0)
        self.encoder, self.vectors = encoder, nn.Parameter(torch.randn(width, classes, generator=draw), False)

    def forward(self, images: Tensor) -> Tensor:
        return 10 * self.encoder.encode_image(images) @ self.vectors


@contextmanager
def _counted_waits() -> Iterator[Counter[str]]:
    places: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for each in caught:
        if "synchroniz" in str(each.message):
            places[f"{Path(each.filename).stem}:{each.lineno}"] += 1


def parity(bench: Bench) -> list[Line]:
    """Features, gradients and an APGD run of the shipped networks on the CPU and on the device, with the same draws."""
    data = Scenes(split="test", train=1, val=1, test=8 if bench.tiny else 64)
    encoder, images = load_dual("tiny").eval(), data.images(torch.arange(len(data)))
    found = []
    for device in ("cpu", bench.device):
        model, pixels = encoder.to(device), images.to(device).requires_grad_()
        features, texts = model.encode_image(pixels), model.encode_text(model.tokenize(data.captions[::6]))
        gradient = torch.autograd.grad((features * texts).sum(), pixels)[0].flatten(1)
        found.append((features.detach().cpu(), F.normalize(gradient, dim=1).cpu()))
    gaps = [float((one - other).abs().max()) for one, other in zip(*found, strict=True)]
    digits, count = Digits(split="test"), 20 if bench.tiny else 500
    network, rows = load_classifier("digits"), torch.arange(min(count, len(digits)))
    attack, verdicts = APGD(steps=2 if bench.tiny else 20, eps="28/255"), []
    for device in ("cpu", bench.device):
        pixels, labels = digits.images(rows).to(device), digits.labels[rows].to(device)
        verdicts.append(attack(network.to(device), pixels, labels).success.cpu())
    same = float((verdicts[0] == verdicts[1]).double().mean())
    lines = [
        Line(what=f"parity of {what}", note=f"differ by at most {gap:.1e}, may by {CLOSE:g}", failed=not gap <= CLOSE)
        for what, gap in zip(("features", "directions of gradients"), gaps, strict=True)
    ]
    share = f"{same:.1%} of {len(rows)} agree, of which {int(verdicts[0].sum())} fall; {SAME:.0%} must"
    return [*lines, Line(what="parity of APGD's verdicts", note=share, failed=same < SAME)]


def mat_step(bench: Bench) -> list[Line]:
    """A step of MAT, in float32 and under autocast to bfloat16."""
    size = 2 if bench.tiny else 128
    setting = bench.setting(size)
    step, floor, lines = setting.step("mat"), _mat_floor(setting), []
    for precision in ("fp32", "bf16"):
        cast = torch.autocast(bench.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()

        def within(call: Callable[[], object], cast: Any = cast) -> Callable[[], None]:
            def cast_call() -> None:
                with cast:
                    call()

            return cast_call

        lines.append(bench.line(f"MAT step, batch {size}, {precision}", within(step), within(floor)))
    return lines


def _mat_floor(setting: Setting) -> Callable[[], None]:
    """Its passes bare: the search of half of the texts, the gradient by the pixels, and that by the weights."""
    model, (batch, images) = setting.model, setting.batches[0]
    tokens = model.tokenize(batch.captions)
    half = tokens[: len(tokens) // 2]

    def loss(pixels: Tensor, texts: Tensor) -> Tensor:
        logits = model.logit_scale * model.encode_image(pixels) @ texts.T
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))

    def step() -> None:
        with frozen(model):
            with torch.no_grad():
                features = model.encode_image(images[: len(half)])
            vectors = model.token_embedding().weight.detach()[half.to(model.device)].requires_grad_()
            torch.autograd.grad((model.encode_text(half, embeddings=vectors) * features).sum(), vectors)
            with torch.no_grad():
                texts = model.encode_text(tokens)
            pixels = images.clone().requires_grad_()
            torch.autograd.grad(loss(pixels, texts), pixels)
        setting.update(loss(images, model.encode_text(tokens)))

    return step


def apgd(bench: Bench) -> list[Line]:
    """APGD that no image leaves early, against as many gradients by the pixels."""
    steps, size = (1, 2) if bench.tiny else (10, 128)
    model, images = bench.classifier(), bench.images(size)
    labels = model(images).argmax(1)
    attack = APGD(steps=steps, early_stop=False)
    call = lambda: attack(model, images, labels)  # noqa: E731
    return [bench.line(f"APGD, {steps} steps, batch {size}", call, lambda: _gradients(model, images, labels, steps))]


def _gradients(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, steps: int) -> None:
    for _ in range(steps):
        pixels = images.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(pixels), labels, reduction="sum"), pixels)


def nvae(bench: Bench) -> list[Line]:
    """The 705 M NVAE of the paper: 32 draws of an image in front of a classifier, with gradients."""
    if bench.tiny:
        sizes, resolution, draws = {**SIZES, "initial_channels": 4, "num_groups_per_scale": 1}, [3, 32, 32], 2
    else:
        generator = compose("train-generator", ["generator=nvae_celeba64"])["generator"]
        sizes, resolution, draws = dict(generator["autoencoder"]), list(generator["resolution"]), 32
    model = NVAE({"resolution": resolution, "autoencoder": sizes})
    weights = sum(each.numel() for each in model.parameters()) / 1e6
    return [_purified(bench, f"NVAE of {weights:.0f} M, 1 image, {draws} draws", model, draws)]


def stylegan(bench: Bench) -> list[Line]:
    """The published sizes of e4e in front of a StyleGAN2 of 1024 px: draws of an image, with gradients."""
    if bench.tiny:
        return [_purified(bench, "e4e and StyleGAN2-32, 1 image, 2 draws", faces(32, 2), 2)]
    model = StyleMixing(E4EEncoder(), StyleGAN2(1024), torch.zeros(512), frame=FACES)
    return [_purified(bench, "e4e and StyleGAN2-1024, 1 image, 8 draws", model, 8)]


def _purified(bench: Bench, what: str, generator: NVAE | StyleMixing, draws: int) -> Line:
    purifier = Purifier(generator, alphas="cosine", attenuation=0.7)
    head = small_cnn(classes=10, channels=3, widths=[16, 32, 64], seed=0)
    model = PurifiedClassifier(head, purifier, draws=draws, memory=None).to(bench.device).eval().requires_grad_(False)
    images = torch.rand(1, *generator.resolution, generator=torch.Generator().manual_seed(0)).to(bench.device)
    torch.manual_seed(0)
    noise = model.cleaner.sample_noise(draws, images)
    gradients = []

    def ours() -> None:
        pixels = images.clone().requires_grad_()
        gradients[:] = torch.autograd.grad(model(pixels, noise)[:, 0].sum(), pixels)

    def bare() -> None:
        pixels = images.clone().requires_grad_()
        prepared = [each.repeat(draws, *[1] * (each.ndim - 1)) for each in model.cleaner.prepare(pixels)]
        torch.autograd.grad(model.cleaner.finish(prepared, noise).sum(), pixels)

    line = bench.line(f"{what}, forward and backward", ours, bare)
    finite = bool(gradients[0].isfinite().all())
    return line if finite else replace(line, note="the gradient is not finite", failed=True)


def waits(bench: Bench) -> list[Line]:
    """Waits of the host in the inner loops."""
    model, images = bench.classifier(), bench.images(2 if bench.tiny else 32)
    labels, few, many = model(images).argmax(1), *((1, 2) if bench.tiny else (10, 20))

    def attack(make: Callable[[int], Any]) -> Callable[[int], object]:
        return lambda steps: make(steps)(model, images, labels)

    setting = bench.setting(2 if bench.tiny else 32)
    captions, step = setting.batches[0][0].captions, setting.step("mat")
    source = SynonymTable({word: list(words) for word, words in synonym_table().items()})

    def search(number: int) -> None:
        with frozen(setting.model):
            width = len(setting.model.encode_text(setting.model.tokenize(["a"]))[0])
            aim = torch.ones(width, device=bench.device)
            words = WordSubstitution(candidates=source)
            for _ in range(number):
                ids = torch.arange(len(captions))
                words.maximise(setting.model, lambda features, _: -(features @ aim), captions, ids)

    loops = {
        "PGD, a step": (attack(lambda steps: PGD(steps=steps, early_stop=False)), few, many),
        "APGD, a step": (attack(lambda steps: APGD(steps=steps, early_stop=False)), few, many),
        "Square, a query": (attack(lambda steps: Square(queries=steps + 1)), few, many),
        "words, a search": (search, 1, 2),
        "MAT, a step": (lambda number: [step() for _ in range(number)], 1, 2),
    }
    lines = []
    for name, (call, first, last) in loops.items():
        number, where = bench.waits(call, first, last)
        lines.append(Line(what=f"waits of {name}", waits=number, note=where))
    return lines


def options(bench: Bench) -> list[Line]:
    """PGD on a convolutional network of fixed shape: plain, channels last, compiled, and as a CUDA graph."""
    steps, size = (1, 2) if bench.tiny else (10, 64)
    images, attack = bench.images(size), PGD(steps=steps, early_stop=False, keep="last")
    if bench.tiny:
        network: nn.Module = small_cnn(classes=10, channels=3, widths=[8, 8, 8], seed=0)
    else:
        network = load_classifier({"name": "torchvision", "architecture": "resnet50", "pretrained": None, "seed": 0})
    network = network.to(bench.device).eval().requires_grad_(False)
    labels = network(images).argmax(1)

    def line(name: str, model: Callable[[Tensor], Tensor]) -> Line:
        call = lambda: attack(model, images, labels)  # noqa: E731
        floor = lambda: _gradients(model, images, labels, steps)  # noqa: E731
        return bench.line(f"PGD, {steps} steps, batch {size}, {name}", call, floor)

    lines = [line("plain", network)]
    if not bench.tiny:  # compiling takes a minute on a CPU
        compiled = torch.compile(network)
        lines.append(_isolated("PGD, compiled", lambda: [line("compiled", compiled)])[0])
        lines.append(_isolated("PGD, CUDA graph", lambda: [line("CUDA graph", _graphed(network, images))])[0])
    else:
        lines += [Line(what=f"PGD, {name}", note=NO_GPU) for name in ("compiled", "CUDA graph")]
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return [*lines, line("channels last", network)]


def _graphed(network: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """The network with forward and backward as graphs of the shape of ``images``; any other shape runs plainly."""
    graphed = torch.cuda.make_graphed_callables(network, (images.clone().requires_grad_(),))

    def call(batch: Tensor) -> Tensor:
        answer: Tensor = graphed(batch) if batch.shape == images.shape and batch.requires_grad else network(batch)
        return answer

    return call


CHECKS: dict[str, Callable[[Bench], list[Line]]] = {
    each.__name__: each for each in (parity, mat_step, apgd, nvae, stylegan, waits, options)
}


def _isolated(name: str, check: Callable[[], list[Line]]) -> list[Line]:
    """Lines of a check; a failure of any kind is one that says so."""
    try:
        return check()
    except Exception as error:  # whatever a driver or a library throws is a row of the table
        message = " ".join(str(error).split())[:200]
        return [Line(what=name, note=f"failed: {type(error).__name__}: {message}", failed=True)]
    finally:
        gc.collect()
        if torch.cuda.is_available():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.cuda.empty_cache()


def _in_process(name: str) -> list[Line]:
    """Lines of a check in a process of its own, which may die or hang."""
    command = [sys.executable, "-m", "benchmarks", "gpu_check", "--only", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return [Line(what=name, note=f"failed: it took more than {LIMIT:g} s", failed=True)]
    for text in reversed(done.stdout.splitlines()):
        if text.startswith("[{"):
            return [Line(**each) for each in json.loads(text)]
    last = (done.stderr.strip().splitlines() or ["no word"])[-1]
    return [Line(what=name, note=f"failed: exit {done.returncode}: {last[:200]}", failed=True)]


def show(lines: Sequence[Line], console: Console, *, tiny: bool) -> None:
    """Print the table, under the names of the card and of torch."""
    card = NO_GPU if tiny else torch.cuda.get_device_name()
    title = f"gpu_check: {card}, torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    table = Table(title=title, title_justify="left")
    for heading in ("what", "time", "floor", "ratio", "peak", "waits", "note"):
        table.add_column(heading, justify="left" if heading in ("what", "note") else "right")
    for line in lines:
        ratio = "" if not line.seconds or not line.floor else f"{line.seconds / line.floor:.2f}x"
        times = ("" if each is None else f"{1e3 * each:,.1f} ms" for each in (line.seconds, line.floor))
        peak = "" if line.seconds is None else NO_GPU if line.peak is None else f"{line.peak:.2f} GiB"
        held = "" if line.waits is None else f"{line.waits:g}"
        note = f"[red]{line.note}[/]" if line.failed else line.note
        table.add_row(line.what, *times, ratio, peak, held, note)
    console.print(table)


def main(argv: Sequence[str], console: Console | None = None) -> int:
    """Run the checks; 0 where no row failed, 1 where one did, 2 without a CUDA device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu_check", description="The parts on a CUDA device.")
    parser.add_argument("--tiny", action="store_true", help="small networks on the CPU, in seconds: does it run?")
    parser.add_argument("--only", choices=list(CHECKS), help="one check, its lines as JSON")
    options = parser.parse_args(argv)
    if not options.tiny and not torch.cuda.is_available():
        print("no CUDA device was found: run this on a machine that has one, or give --tiny", file=sys.stderr)
        return 2
    bench = Bench(options.tiny)
    if options.only:
        lines = _isolated(options.only, lambda: CHECKS[options.only](bench))
        print(json.dumps([asdict(line) for line in lines]))
        return int(any(line.failed for line in lines))
    lines = []
    for name, check in CHECKS.items():
        lines += _isolated(name, lambda check=check: check(bench)) if options.tiny else _in_process(name)  # type: ignore[misc]
    show(lines, console or Console(width=None if sys.stdout.isatty() else 200), tiny=options.tiny)
    return int(any(line.failed for line in lines))
