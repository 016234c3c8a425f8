"""``lenet``: LeNet-5 for digits, as it is usually written today (LeCun et al. 1998, section II.B).

Shapes: B batch, Y classes.
"""

from collections import OrderedDict

from torch import Tensor, nn

from robustcli.models.assembly import Classes, class_count, he_initialised, settings_and_weights
from robustcli.models.classifier import Classifier
from robustcli.models.weights import Checkpoint, assign

_SIZE = 32


def lenet(*, classes: Classes = tuple("0123456789"), seed: int = 0, checkpoint: Checkpoint | None = None) -> Classifier:
    """LeNet-5 with rectifiers and max pooling; grey images are resized to 32 x 32, pixels are not normalised.

    Args:
        classes: their names in the order of the logits, or their number.
        seed: of random weights, where none are loaded.
        checkpoint: a file of ``save_weights``, or a state dict with the names ``convnet.c1`` to ``fc.f7``.

    Raises:
        UserError: a checkpoint of another model.
    """
    settings, weights = settings_and_weights(lenet, {"classes": classes}, checkpoint)
    number = class_count(settings["classes"])
    network = he_initialised(lambda: _LeNet(number), seed, weights)
    model = Classifier(
        network,
        classes=settings["classes"],
        mean=(0.0,),
        std=(1.0,),
        image_size=_SIZE,
        description={"factory": "lenet", **settings},
    )
    if weights is not None:
        assign(model, weights)
    return model


class _LeNet(nn.Module):
    """(B,1,32,32) -> (B,Y)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.convnet = nn.Sequential(
            OrderedDict(
                c1=nn.Conv2d(1, 6, 5),
                relu1=nn.ReLU(),
                s2=nn.MaxPool2d(2),
                c3=nn.Conv2d(6, 16, 5),
                relu3=nn.ReLU(),
                s4=nn.MaxPool2d(2),
                c5=nn.Conv2d(16, 120, 5),
                relu5=nn.ReLU(),
            )
        )
        self.fc = nn.Sequential(OrderedDict(f6=nn.Linear(120, 84), relu6=nn.ReLU(), f7=nn.Linear(84, classes)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.convnet(x).flatten(1))
        return logits
