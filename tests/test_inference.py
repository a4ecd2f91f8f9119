"""The model at test time: equal to NAE's steps written out, one proposal at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny_config, tiny_model
from shardset import picture
from torch import Tensor

from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.keyed import Draws
from pipeline.rendering.geometry import Size, scene_crop
from training.evaluation.scenes import Scene, find_people, fit_scene, fitted
from training.model.inference import Finder, InferenceConfig
from training.model.norm_aware import unit
from training.model.person_search import PersonSearch
from training.run_config import RunConfig

FINETUNE = Path(__file__).parent.parent / "launch/configs/finetune"
SIZE = (64, 96)


def trained_model(**detector: object) -> PersonSearch:
    """Random weights whose statistics and scores differ from image to image."""
    config = tiny_config()
    changed = config.model.detector.model_copy(update=detector)
    search = config.model.model_copy(update={"detector": changed})
    model = tiny_model(config.model_copy(update={"model": search})).search
    torch.manual_seed(3)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var") and "canvas" not in name:
            buffer.uniform_(0.5, 2.0)
        if name.endswith("running_mean") and "canvas" not in name:
            buffer.normal_(0, 0.1)
    with torch.no_grad():
        for parameter in model.embedding_head.parameters():
            parameter.normal_(0, 0.3)
        model.box_regressor[0].weight.normal_(0, 0.3)
        model.box_regressor[1].weight.fill_(1.0)
        # a single rescaler: make its mean that of the norms, so that some scores are above a half
        model.classifier.rescaler.running_mean.fill_(2.0)
    return model.eval()


def scenes(count: int, height: int = 64, width: int = 96) -> list[Scene]:
    asked = np.array([[5.0, 5.0, 30.0, 60.0], [40.0, 0.0, 80.0, 50.0]])
    return [fit_scene(picture(height, width, seed), SIZE, asked) for seed in range(count)]


@torch.no_grad()
def literal(model: PersonSearch, scene: Scene, config: InferenceConfig) -> list[tuple]:
    """Boxes in pixels of the model, scores and embeddings."""
    maps = model.backbone(model.normalise(torch.from_numpy(scene.pixels)[None]))
    height, width = scene.pixels.shape[:2]
    trained = model.config.detector
    number = (
        min(config.proposals_before_nms, trained.proposals_before_nms),
        min(config.proposals, trained.proposals),
    )
    proposals, real = model.rpn.propose(maps, torch.tensor([[height, width]]), number)
    found = []
    for proposal in proposals[0, real[0]]:
        features = model.roi_features(maps, proposal[None], [(0, 1)])
        logit = model.classifier(features.embedding, features.pooled)[0]
        dx, dy, dw, dh = (
            model.box_regressor(features.pooled)[0] / torch.tensor([10, 10, 5, 5])
        ).tolist()
        x1, y1, x2, y2 = proposal.tolist()
        w, h = x2 - x1, y2 - y1
        cx, cy = x1 + w / 2 + dx * w, y1 + h / 2 + dy * h
        w, h = w * np.exp(min(dw, np.log(1000 / 16))), h * np.exp(min(dh, np.log(1000 / 16)))
        box = np.clip(
            [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 0, [width, height, width, height]
        )
        found.append((box, torch.sigmoid(logit).item(), unit(features.embedding)[0]))
    found = sorted((one for one in found if one[1] >= config.min_score), key=lambda one: -one[1])
    kept: list[tuple] = []
    for one in found:
        if all(overlap(one[0], other[0]) <= config.nms_iou for other in kept):
            kept.append(one)
    return kept[: config.detections]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("config", [InferenceConfig(), InferenceConfig(detections=3, nms_iou=0.2)])
def test_one_pass_is_naes_steps_one_by_one(config: InferenceConfig) -> None:
    model = trained_model()
    (scene,) = scenes(1)
    (found,) = find_people(Finder(model, config), [scene], batch=1)
    expected = literal(model, scene, config)
    assert len(found.scores) == len(expected) > 1
    close(found.scores, torch.tensor([score for _, score, _ in expected]))
    close(found.boxes, torch.tensor(np.array([box for box, *_ in expected])).float(), 1e-3)
    close(found.embeddings, torch.stack([vector for *_, vector in expected]))


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=tolerance)


def test_neither_batches_nor_padding_change_what_is_found() -> None:
    model = trained_model()
    mixed = [*scenes(2), *scenes(2, 60, 70), *scenes(1)]
    finder = Finder(model, InferenceConfig())
    alone = [find_people(finder, [scene], 1)[0] for scene in mixed]
    together = find_people(finder, mixed, 3)
    for one, other in zip(alone, together):
        assert len(one.scores) == len(other.scores)
        close(one.scores, other.scores)
        close(one.boxes, other.boxes, 1e-2)
        close(one.asked, other.asked)


def test_boxes_are_of_the_image_as_stored() -> None:
    """An image of twice the size at half the scale: the same model input, boxes twice as large."""
    model, finder = trained_model(), None
    finder = Finder(model, InferenceConfig())
    small = picture(64, 96, 0)
    asked = np.array([[5.0, 5.0, 30.0, 60.0]])
    large = Scene(small, (0.5, 0.5), asked * 2)
    one, other = find_people(finder, [Scene(small, (1.0, 1.0), asked), large], 2)
    close(one.boxes * 2, other.boxes, 1e-2)
    close(one.asked, other.asked)


def test_what_is_asked_for_is_embedded_as_it_is() -> None:
    model = trained_model()
    (scene,) = scenes(1)
    (found,) = find_people(Finder(model, InferenceConfig()), [scene], 1)
    with torch.no_grad():
        maps = model.backbone(model.normalise(torch.from_numpy(scene.pixels)[None]))
        boxes = torch.from_numpy(scene.asked).float()
        features = model.roi_features(maps, boxes, [(0, 2)])
    close(found.asked, unit(features.embedding))
    close(found.asked.norm(dim=1), torch.ones(2))


def test_nobody_may_be_found() -> None:
    finder = Finder(trained_model(), InferenceConfig(min_score=1.0))
    (found,) = find_people(finder, scenes(1), 1)
    assert (len(found.boxes), len(found.scores), len(found.embeddings)) == (0, 0, 0)
    assert len(found.asked) == 2
    assert find_people(finder, [], 1) == []


def test_weights_that_are_not_finite_are_refused() -> None:
    model = trained_model()
    with torch.no_grad():
        model.embedding_head.projectors["feat_res5"][0].weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        find_people(Finder(model, InferenceConfig()), scenes(1), 1)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("prw", (1080, 1920)),
        ("prw", (576, 720)),
        ("cuhk_sysu", (600, 800)),
        ("cuhk_sysu", (800, 600)),
        ("cuhk_sysu", (450, 800)),
        ("posetrack21", (720, 1280)),
    ],
)
def test_fine_tuning_shows_people_as_large_as_evaluation_does(
    name: str, image: tuple[int, int]
) -> None:
    stream = load_config(RunConfig, FINETUNE / f"{name}.yaml").stream
    short, long = sorted(stream.scene_size)
    view = Size(*stream.scene_size)
    shown = scene_crop(Size(*image), view, stream.views.scene_scale, Draws("any"))
    assert shown.size == fitted(*image, (short, long))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ((1080, 1920), (844, 1500)),
        ((800, 600), (1200, 900)),
        ((600, 800), (900, 1200)),
        ((100, 4000), (38, 1500)),
    ],
)
def test_the_benchmarks_scale(image: tuple[int, int], expected: tuple[int, int]) -> None:
    """The short side 900 pixels, the long one at most 1500, whichever way the image is turned."""
    assert fitted(*image, (900, 1500)) == expected
