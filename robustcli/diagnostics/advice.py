"""What to do about each way in which a number can be too good to be true."""

NAN = (
    "Find the step that makes the NaN (a root or logarithm of 0, an overflow in half precision); until then "
    "attack=square needs no gradient."
)
SATURATED = (
    "The loss is saturated, its margin is not: set attack.image.loss=margin or dlr, which do not change with the scale "
    "of the logits, or attack=autoattack."
)
SHATTERED = (
    "A step of the model has no useful gradient (rounding, JPEG, argmax): give it one with BPDA, and judge with "
    "attack=square beside it."
)
RANDOMISED = "Average the gradient over draws (EOT, attack.eot=20), and judge on fresh draws."
NOT_MONOTONE = "The step does not fit the ball: set attack.image.alpha=null, so that it grows with eps, or attack=apgd."
STILL_RISING = (
    "The attack ends on its way up: more attack.image.steps, a larger attack.image.alpha (null fits it to eps), or "
    "attack=apgd."
)
MASKED = (
    "Gradients are masked, or the attack is broken: BPDA or EOT for the defence, attack.image.loss=margin, and "
    "attack=square beside it."
)
BLACK_BOX = (
    "The gradients mislead the attack: attack.image.loss=margin or gallery, BPDA or EOT for the defence, more "
    "restarts; take attack=autoattack (retrieval_autoattack) for the claim."
)
STRONGER = (
    "The attack is weak for its budget: attack=apgd, attack.image.loss=gallery or margin, and attack=autoattack "
    "(retrieval_autoattack) for the claim."
)
TRANSFER = (
    "The model's own gradients serve worse than another's: add attack=surrogate to the judges, and BPDA or EOT for the "
    "defence."
)
WORDS = "The search drops what it had found: attack.text.search=exhaustive, or a larger attack.text.top_k."


def more_steps(steps: int) -> str:
    """For an attack that twice its steps, ``steps``, made stronger."""
    return (
        f"The attack had not converged: set attack.image.steps={steps} or more, until nothing changes, or attack=apgd."
    )
