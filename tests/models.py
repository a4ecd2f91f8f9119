"""A hybrid model small enough for tests."""

import torch

from training.hybrid import AlignmentConfig, HybridConfig, HybridModel
from training.losses.oim import OimConfig
from training.model.backbones.common import BackboneConfig
from training.model.detector import DetectorConfig, Quota
from training.model.person_search import PersonSearchConfig

DOMAINS = {"detection": ("crowdhuman", "ecp"), "reid": ("msmt17", "cuhk03", "luperson")}
NUM_IDENTITIES = 6


def tiny_config(**changes: object) -> HybridConfig:
    detector = DetectorConfig(
        anchor_sizes=(24, 48),
        anchor_ratios=(2.0,),
        proposals_before_nms=64,
        proposals=16,
        roi_background_iou=0.3,
        roi_size=(4, 4),
        scenes=Quota(anchors=32, rois=8),
        canvases=Quota(anchors=16, rois=4),
    )
    model = PersonSearchConfig(
        backbone=BackboneConfig(
            name="resnet18", weights="random", norm="cross_rank", freeze_stem=False
        ),
        detector=detector,
    )
    base = HybridConfig(
        model=model, oim=OimConfig(queue=16), alignment=AlignmentConfig(ramp=(0, 2))
    )
    return base.model_copy(update=changes)


def jittered_config() -> HybridConfig:
    """Proposals around the ground truth: free ones flip on the rounding that CPUs and ranks change."""
    config = tiny_config()
    detector = config.model.detector.model_copy(update={"proposal_source": "jitter"})
    model = config.model.model_copy(update={"detector": detector})
    return config.model_copy(update={"model": model})


def tiny_model(config: HybridConfig | None = None, seed: int = 0) -> HybridModel:
    torch.manual_seed(seed)
    return HybridModel(config or tiny_config(), NUM_IDENTITIES, DOMAINS, seed=7)
