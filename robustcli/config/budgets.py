"""Default radius of a threat model: what the field takes for the norm and the data set."""

from collections.abc import Mapping

# By the class of the data set; the others get the last. L-inf: Madry et al. 2018 (MNIST, CIFAR); L2: RobustBench's of
# CIFAR-10, for all, in units of the norm over all pixels.
_RADII: Mapping[str, Mapping[str, str]] = {
    "linf": {"Mnist": "0.3", "Cifar10": "8/255", "Cifar100": "8/255", "": "4/255"},
    "l2": {"": "0.5"},
}


def default_eps(norm: str, dataset: str) -> str:
    """Radius in units of [0,1] pixels, for a threat model of ``norm`` on a data set of the class ``dataset``.

    ``conf/threat`` calls it as ``${default_eps:NORM,CLASS}``; an unknown norm gets that of ``linf``, and is refused
    where the threat model is built.
    """
    radii = _RADII.get(norm, _RADII["linf"])
    return radii.get(dataset.rpartition(".")[2], radii[""])
