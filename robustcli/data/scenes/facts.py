"""What further images of scenes show and further captions claim, as JSON and beside those of a set.

Shapes as in `captions`.
"""

import json
from collections.abc import Sequence

import numpy as np

from robustcli.data.base import Derived
from robustcli.data.scenes.captions import Predicates
from robustcli.data.scenes.world import World


def scene_facts(world: World, row: int) -> str:
    """What the scene ``row`` shows."""
    return json.dumps({"objects": world.objects[row].tolist(), "texture": int(world.textures[row])})


def caption_facts(predicates: Predicates, row: int) -> str:
    """What the caption ``row`` claims."""
    return json.dumps(
        {
            "patterns": predicates.patterns[row].tolist(),
            "count": int(predicates.counts[row]),
            "texture": int(predicates.textures[row]),
            "relation": int(predicates.relations[row]),
        }
    )


def further_world(world: World, images: Sequence[Derived]) -> World:
    """``world`` and the scenes of further images: by their facts, or else that of their source."""
    objects, textures = [world.objects], [world.textures]
    for each in images:
        if each.facts is None:
            assert each.source is not None
            scene = world[np.array([each.source])]
            objects.append(scene.objects)
            textures.append(scene.textures)
        else:
            facts = json.loads(each.facts)
            objects.append(np.array([facts["objects"]]))
            textures.append(np.array([facts["texture"]]))
    return World(np.concatenate(objects), np.concatenate(textures))


def further_predicates(predicates: Predicates, captions: Sequence[Derived]) -> Predicates:
    """``predicates`` and the claims of further captions: by their facts, or else those of their source; of one that has
    neither the row means nothing.
    """
    parts = [predicates]
    for each in captions:
        if each.facts is None:
            parts.append(predicates[np.array([each.source or 0])])
        else:
            facts = json.loads(each.facts)
            columns = (np.array([facts[key]]) for key in ("patterns", "count", "texture", "relation"))
            parts.append(Predicates(*columns))
    return Predicates(
        *(
            np.concatenate([getattr(part, key) for part in parts])
            for key in ("patterns", "counts", "textures", "relations")
        )
    )
