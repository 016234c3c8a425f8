"""The threat model of a run in words."""

from collections.abc import Sequence

from robustcli.attacks import ThreatModel
from robustcli.attacks.core.threat import shown

_ACCESS = {
    "static": "static: the attacker knows the model alone and nothing of what stands in front of it.",
    "transfer": "transfer: the attacker knows a surrogate, and nothing of the judged model.",
    "bpda": "BPDA: the attacker runs the defence, but takes the cleaner's gradient for the identity.",
    "shortened": "shorter: the attacker takes the gradient of a cleaner of fewer steps than the one that is judged.",
    "adaptive": "adaptive: the attacker knows all weights and averages gradients over draws, but not the draws of the "
    "verdict.",
}


def threat_model(
    threat: ThreatModel, *, captions: bool, images: bool = True, access: Sequence[str] = ("adaptive",)
) -> list[str]:
    """The threat model in sentences: budget of the image, budget of the caption, and the attacker's knowledge.

    Args:
        captions: True if the data set has captions.
        images: False if it has sentences before classes.
        access: see `robustcli.evaluation.access`; ``adaptive`` alone: a model without a test-time defence.
    """
    sentences = [_image(threat) if images else "Classes are not changed."]
    if captions:
        sentences.append(_captions(threat, "caption" if images else "sentence"))
    if list(access) == ["adaptive"]:
        return [
            *sentences,
            "The attacker knows all weights, and every result is judged again on what the attack put out.",
        ]
    return [*sentences, *(_ACCESS[each] for each in access)]


def _image(threat: ThreatModel) -> str:
    eps = shown(threat.eps, threat.norm)
    if not threat.moves_images:
        return "Images are not changed."
    if threat.norm == "linf":
        if threat.eps is None:
            return "An image may change by any amount: the smallest largest change of a pixel value is looked for."
        return f"Each pixel value of an image, in [0, 1], may change by at most {eps} (L-inf)."
    if threat.eps is None:
        return "An image may change by any amount: the smallest L2 norm of the change is looked for."
    return f"An image, with pixel values in [0, 1], may change by at most {eps} in all (L2 norm)."


def _captions(threat: ThreatModel, text: str) -> str:
    if not threat.moves_texts:
        return f"{text.capitalize()}s are not changed."
    unit = threat.text.key if threat.text.n != 1 else threat.text.key.removesuffix("s")
    return f"At most {threat.text.n} {unit} of a {text} may be replaced, put in or left out."
