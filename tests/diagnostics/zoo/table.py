"""Table of the diagnostics of every member of the zoo, in Markdown."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from robustcli.config.schemas import DiagnosticsSettings
from robustcli.data import Digits
from robustcli.diagnostics import OK, SUSPECT, diagnose, verdict
from tests.diagnostics.zoo.members import AUTOATTACK, HONEST, PLANTED, SAMPLES, Member, bare, sample_images

_MEMBERS: Mapping[str, Member] = {**PLANTED, **HONEST}
_NEAR = 0.05  # by which more may be left than of the bare network, for an attack that breaks the defence


@dataclass(frozen=True)
class Row:
    """Diagnosis of a member: shares of the images that are right when clean and under attack, and the verdict with the
    checks that are suspect.
    """

    name: str
    clean: float
    left: float
    verdict: str
    suspects: tuple[str, ...]

    def sound(self, bare_left: float) -> bool:
        """What the zoo asks for."""
        if _MEMBERS[self.name].honest:
            return self.verdict == OK
        return self.verdict == SUSPECT or self.left <= bare_left + _NEAR

    def markdown(self) -> str:
        member = _MEMBERS[self.name]
        attack, threat = type(member.attack).__name__, f"{member.threat.norm} {member.threat.radius:.3g}"
        shown = f"{100 * self.clean:.0f} | {100 * self.left:.0f}"
        return f"| {self.name} | {attack}, {threat} | {shown} | {self.verdict} | {', '.join(self.suspects)} |"


def diagnosed(name: str) -> Row:
    """Diagnosis of the member ``name``."""
    torch.set_num_threads(1)
    member = _MEMBERS[name]
    subject = member.subject()
    outcome = copy.deepcopy(subject).attacked(member.attack)  # some count what they are asked
    # As much as the commands give them where the attack alone was run, on all test images.
    share = DiagnosticsSettings(extent="auto").share
    evaluation = int(outcome.passes.sum()) * len(Digits(split="test")) / SAMPLES
    findings = diagnose(subject, member.attack, limit=None if share is None else int(share * evaluation))
    correct = subject.attackable("image")
    left = correct & ~outcome.success
    return Row(
        name=name,
        clean=float(correct.double().mean()),
        left=float(left.double().mean()),
        verdict=verdict(findings),
        suspects=tuple(finding.check for finding in findings if finding.status == SUSPECT),
    )


def main(names: Sequence[str]) -> int:
    """Print the table of ``names``, all members without one; the exit code."""
    start, chosen = time.monotonic(), list(names or _MEMBERS)
    images, labels = sample_images()
    bare_left = float((~AUTOATTACK(bare(), images, labels, PLANTED["rippled loss"].threat).success).double().mean())
    # Workers that start anew: a fork of a process with threads of its own may hang.
    with get_context("spawn").Pool(2) as pool:
        rows = pool.map(diagnosed, chosen, chunksize=1)
    for title, honest in (("planted", False), ("honest", True)):
        shown = [row for row in rows if _MEMBERS[row.name].honest == honest]
        if not shown:
            continue
        print(f"\n| {title} | attack | clean | left | verdict | suspect |\n|---|---|--:|--:|---|---|")
        for row in shown:
            print(row.markdown())
        count = sum(row.verdict == SUSPECT for row in shown)
        print(f"\n{count} of {len(shown)} {title} are suspect.")
    unsound = [row.name for row in rows if not row.sound(bare_left)]
    print(f"AutoAttack leaves {100 * bare_left:.0f} % of the bare network; {time.monotonic() - start:.0f} seconds.")
    if unsound:
        print(f"Wrong: {', '.join(unsound)}.")
    return int(bool(unsound))
