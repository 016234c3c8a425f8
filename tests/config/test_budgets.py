"""Default radii, by the norm and the class of the data set."""

import pytest

from robustcli.config.budgets import default_eps


@pytest.mark.parametrize(
    ("norm", "dataset", "expected"),
    [
        ("linf", "robustcli.data.Mnist", "0.3"),
        ("linf", "robustcli.data.torchvision.Cifar10", "8/255"),
        ("linf", "Cifar100", "8/255"),
        ("linf", "robustcli.data.Scenes", "4/255"),
        ("l2", "robustcli.data.Mnist", "0.5"),
        ("l2", "robustcli.data.Scenes", "0.5"),
        ("l1", "robustcli.data.Mnist", "0.3"),  # refused where the threat model is built
    ],
)
def test_a_radius_is_what_the_field_takes(norm: str, dataset: str, expected: str) -> None:
    assert default_eps(norm, dataset) == expected
