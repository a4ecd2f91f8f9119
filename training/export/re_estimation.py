"""Running statistics measured anew, for targets that freeze them: means over many scenes, not decaying ones.

Source: Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021 (precise batch norm).
"""

import torch

from pipeline.errors import UserError
from pipeline.identities import Identities
from pipeline.stream import Stream
from training.device import inference_device
from training.model.norm import CrossRankNorm
from training.model.person_search import PersonSearch
from training.run_config import RunConfig


@torch.no_grad()
def re_estimate(
    search: PersonSearch, config: RunConfig, identities: Identities, slices: int, scenes: int
) -> int:
    """Sets the statistics of scenes from at least `scenes` of them, the run's first; returns how many.

    In batches of the size that a rank had, one of `slices` of the global batch, normalised by themselves as
    in training. Canvases' statistics stay. Raises UserError where that is not how the model was trained.
    """
    if config.hybrid.model.backbone.norm != "cross_rank":
        raise UserError(
            "--re-estimate is for runs with `backbone.norm: cross_rank`: with "
            f"{config.hybrid.model.backbone.norm} norms the network was trained with the very statistics "
            "that it has. Leave --re-estimate out."
        )
    if not config.stream.scene_batch:
        raise UserError("--re-estimate needs scenes, and this run's stream has none.")
    only_scenes = config.stream.model_copy(update={"canvas_batch": 0})
    stream = Stream.open(only_scenes, accumulation=slices, identities=identities)
    device = inference_device()
    search.to(device).train()
    norms = [module for module in search.modules() if isinstance(module, CrossRankNorm)]
    seen = 0
    with stream.batches() as batches:
        for number, batch in enumerate(batches):
            for norm in norms:
                norm.momentum = 1 / (number + 1)  # the mean of all so far
            images = batch.to(device).scenes
            assert images is not None
            search(images, "scenes")
            seen += len(images.keys)
            if seen >= scenes:
                break
    search.cpu().eval()
    return seen
