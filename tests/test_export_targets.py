"""Each target's keys and shapes, as its published code has them, and that what it loads computes the same."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from test_export import config, exported, trained
from torch import Tensor, nn

from pipeline.errors import UserError
from training.export.exported import Exported, export
from training.export.files import write_files

STATISTICS = ("running_mean", "running_var")

Shapes = dict[str, tuple[int, ...]]


def resnet50(prefix: str, *stages: str) -> Shapes:
    """torchvision's own tensors; `stages` say which, by how their names begin."""
    state = torchvision.models.resnet50(weights=None).state_dict()
    return {prefix + k: tuple(v.shape) for k, v in state.items() if k.startswith(stages)}


def linear(prefix: str, inputs: int, outputs: int) -> Shapes:
    return {f"{prefix}.weight": (outputs, inputs), f"{prefix}.bias": (outputs,)}


def norm(prefix: str, channels: int) -> Shapes:
    found = {f"{prefix}.{name}": (channels,) for name in ("weight", "bias", *STATISTICS)}
    return {**found, f"{prefix}.num_batches_tracked": ()}


def rpn(conv: str, classes: str, boxes: str) -> Shapes:
    return {
        f"{conv}.weight": (1024, 1024, 3, 3),
        f"{conv}.bias": (1024,),
        f"{classes}.weight": (15, 1024, 1, 1),
        f"{classes}.bias": (15,),
        f"{boxes}.weight": (60, 1024, 1, 1),
        f"{boxes}.bias": (60,),
    }


TRUNK = ("conv1", "bn1", "layer1", "layer2", "layer3")


def nae() -> Shapes:
    heads = "roi_heads."
    return {
        **resnet50("backbone.", *TRUNK),
        **resnet50(f"{heads}box_head.", "layer4"),
        **rpn("rpn.head.conv", "rpn.head.cls_logits", "rpn.head.bbox_pred"),
        **linear(f"{heads}box_predictor.bbox_pred.0", 2048, 8),
        **norm(f"{heads}box_predictor.bbox_pred.1", 8),
        **linear(f"{heads}embedding_head.projectors.feat_res4.0", 1024, 128),
        **norm(f"{heads}embedding_head.projectors.feat_res4.1", 128),
        **linear(f"{heads}embedding_head.projectors.feat_res5.0", 2048, 128),
        **norm(f"{heads}embedding_head.projectors.feat_res5.1", 128),
        **norm(f"{heads}embedding_head.rescaler", 1),
    }


def seqnet() -> Shapes:
    return {
        **nae(),
        **resnet50("roi_heads.reid_head.", "layer4"),
        **linear("roi_heads.faster_rcnn_predictor.bbox_pred", 2048, 8),
    }


def coat() -> Shapes:
    return {
        **resnet50("backbone.", *TRUNK),
        **rpn("rpn.head.conv", "rpn.head.cls_logits", "rpn.head.bbox_pred"),
    }


def roi_alignps() -> Shapes:
    head = "roi_head.bbox_head."
    return {
        **resnet50("backbone.", *TRUNK, "layer4"),
        **resnet50("roi_head.shared_head.", "layer4"),
        **rpn("rpn_head.rpn_conv", "rpn_head.rpn_cls", "rpn_head.rpn_reg"),
        **linear(f"{head}embedding_head.projectors.0.0", 1024, 128),
        **norm(f"{head}embedding_head.projectors.0.1", 128),
        **linear(f"{head}embedding_head.projectors.1.0", 2048, 128),
        **norm(f"{head}embedding_head.projectors.1.1", 128),
        **norm(f"{head}embedding_head.rescaler", 1),
        **linear(f"{head}fc_reg.0", 2048, 4),
        **norm(f"{head}fc_reg.1", 4),
    }


def both_layer4(*prefixes: str) -> Shapes:
    found = resnet50("backbone.", *TRUNK)
    for prefix in prefixes:
        found |= resnet50(prefix, "layer4")
    return found


@pytest.mark.parametrize(
    ("target", "part", "expected"),
    [
        ("nae", "model", nae()),
        ("seqnet", "model", seqnet()),
        ("coat", "model", coat()),
        ("roi_alignps", "model", roi_alignps()),
        ("nae", "backbone", both_layer4("roi_heads.box_head.")),
        ("seqnet", "backbone", both_layer4("roi_heads.box_head.", "roi_heads.reid_head.")),
        ("coat", "backbone", both_layer4()),
        ("alignps", "backbone", resnet50("", *TRUNK, "layer4")),
        ("roi_alignps", "backbone", resnet50("", *TRUNK, "layer4")),
    ],
)
def test_the_export_has_the_keys_and_shapes_that_the_target_shares(
    target: str, part: str, expected: Shapes
) -> None:
    found = exported(target, part=part)
    assert {name: tuple(value.shape) for name, value in found.tensors.items()} == expected
    assert not any("lut" in name or "cq" in name for name in found.tensors)
    assert all(row.given == row.wanted for row in found.coverage)


@pytest.mark.parametrize(
    ("target", "wrapper"),
    [("nae", "model"), ("seqnet", "model"), ("coat", "model"), ("roi_alignps", "state_dict")],
)
def test_the_pth_is_what_the_target_s_loader_opens(
    target: str, wrapper: str, tmp_path: Path
) -> None:
    found = exported(target)
    write_files(found, tmp_path / "weights", {}, "# card")
    content = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert content[wrapper].keys() == found.tensors.keys()
    with open(tmp_path / "weights.pth", "rb") as file:
        assert file.read(2) != b"PK"  # a zip, which PyTorch before 1.6 cannot read


class NaeHeads(nn.Module):
    """A RoI's path through NAE's heads, from the description of its structure."""

    def __init__(self) -> None:
        super().__init__()
        self.layer4 = torchvision.models.resnet50(weights=None).layer4
        self.res4 = nn.Sequential(nn.Linear(1024, 128), nn.BatchNorm1d(128))
        self.res5 = nn.Sequential(nn.Linear(2048, 128), nn.BatchNorm1d(128))
        self.rescaler = nn.BatchNorm1d(1)
        self.boxes = nn.Sequential(nn.Linear(2048, 8), nn.BatchNorm1d(8))

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled = self.layer4(maps).amax((2, 3))
        embedding = torch.cat([self.res4(maps.amax((2, 3))), self.res5(pooled)], 1)
        score = self.rescaler(embedding.norm(dim=1, keepdim=True)).squeeze(1)
        return F.normalize(embedding), score, self.boxes(pooled)


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def nae_heads(found: Exported) -> NaeHeads:
    heads = NaeHeads()
    embedding = "roi_heads.embedding_head."
    for module, prefix in (
        (heads.layer4, "roi_heads.box_head.layer4."),
        (heads.res4, f"{embedding}projectors.feat_res4."),
        (heads.res5, f"{embedding}projectors.feat_res5."),
        (heads.rescaler, f"{embedding}rescaler."),
        (heads.boxes, "roi_heads.box_predictor.bbox_pred."),
    ):
        module.load_state_dict(below(found.tensors, prefix))
    return heads.eval()


@torch.no_grad()
def ours(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    search = trained("resnet50").search
    pooled = search.head["layer4"](maps).amax((2, 3))
    embedding = search.embedding_head(maps.amax((2, 3)), pooled)
    return (
        F.normalize(embedding),
        search.classifier(embedding, pooled),
        search.box_regressor(pooled),
    )


@torch.no_grad()
def test_nae_s_heads_compute_what_ours_do_for_person_and_background() -> None:
    maps = torch.rand(3, 1024, 14, 14)
    embedding, score, boxes = nae_heads(exported("nae"))(maps)
    expected = ours(maps)
    torch.testing.assert_close(embedding, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(score, expected[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(boxes[:, 4:], expected[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(boxes[:, :4], expected[2], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_seqnet_s_first_regressor_holds_the_norm_too() -> None:
    found = exported("seqnet").tensors
    first = nn.Linear(2048, 8)
    first.load_state_dict(below(found, "roi_heads.faster_rcnn_predictor.bbox_pred."))
    pooled = torch.rand(5, 2048)
    expected = trained("resnet50").search.box_regressor(pooled)
    torch.testing.assert_close(first(pooled)[:, 4:], expected, rtol=1e-4, atol=1e-4)


def test_new_torchvision_takes_the_old_names_of_the_rpn() -> None:
    head = torchvision.models.detection.rpn.RPNHead(1024, 15)
    head.load_state_dict(below(exported("nae").tensors, "rpn.head."))
    source = trained("resnet50").search.rpn.head.state_dict()
    assert all(torch.equal(value, source[name]) for name, value in head.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize(("target", "prefix"), [("alignps", ""), ("roi_alignps", "backbone.")])
def test_bgr_pixels_less_their_mean_give_the_same_features(target: str, prefix: str) -> None:
    net = torchvision.models.resnet50(weights=None)
    net.load_state_dict(below(exported(target).tensors, prefix), strict=False)
    net.fc = nn.Identity()
    pixels = torch.randint(0, 256, (2, 96, 64, 3)).float()
    rgb = trained("resnet50").search.normalise(pixels)
    bgr = (pixels.flip(3) - torch.tensor([103.530, 116.280, 123.675])).permute(0, 3, 1, 2)
    rgb, bgr = (F.pad(image, (0, 32, 0, 16)) for image in (rgb, bgr))  # zeros, as both pad
    expected = trained("resnet50").features(rgb)
    assert (net.eval()(bgr) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("target", "copies"),
    [
        ("seqnet", ("roi_heads.box_head.", "roi_heads.reid_head.")),
        ("roi_alignps", ("backbone.", "roi_head.shared_head.")),
    ],
)
def test_targets_with_two_heads_get_layer4_twice(target: str, copies: tuple[str, str]) -> None:
    found = exported(target).tensors
    first, second = (below(found, f"{copy}layer4.") for copy in copies)
    source = below(trained("resnet50").state_dict(), "search.head.layer4.")
    assert all(torch.equal(first[name], source[name]) for name in first)
    assert all(torch.equal(second[name], source[name]) for name in first)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"heads": {"classifier": "linear"}}, "classifier: linear"),
        ({"heads": {"box_norm": False}}, "box_norm"),
        ({"detector": {"anchor_ratios": (1.0, 2.0, 3.0)}}, "anchors other than"),
        ({"detector": {"roi_size": (8, 4)}}, "RoIs of .* cells"),
    ],
)
def test_a_model_with_other_heads_gives_its_backbone_alone(
    parts: dict[str, object], message: str
) -> None:
    state, other = trained("resnet50").state_dict(), config("resnet50", **parts)
    for target in ("nae", "seqnet", "roi_alignps"):
        with pytest.raises(UserError, match=message):
            export(target, None, state, other)
    assert export("nae", "backbone", state, other).tensors
