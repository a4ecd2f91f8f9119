"""Every backbone in the table: shapes, gradients, the network that its weight files mean, and the files."""

from pathlib import Path
from typing import get_args
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.batch import Batch
from pipeline.config import parse_config
from pipeline.errors import UserError
from tests.batches import make_images
from tests.models import tiny_config, tiny_model
from training.hybrid import KINDS
from training.model.backbone import BUILDERS, build_backbone
from training.model.backbones.common import LAYER_NORMED, Backbone, BackboneConfig
from training.model.backbones.shufflenet_v1 import CHANNELS, shuffle
from training.model.detector import Quota
from training.model.norm import CrossRankNorm, FrozenNorm, NormContext, ReEstimatedNorm
from training.model.person_search import PersonSearchConfig

FEW = Quota(anchors=8, rois=2)


def config_of(name: str, **settings: object) -> BackboneConfig:
    norm = "layer" if name in LAYER_NORMED else "cross_rank"
    tree = {"name": name, "weights": "random", "norm": norm, **settings}
    return parse_config(BackboneConfig, tree, "run.yaml")


def built(name: str, **settings: object) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(config_of(name, **settings), NormContext())[0]


def test_the_table_is_what_settings_allow() -> None:
    assert set(BUILDERS) == set(get_args(BackboneConfig.model_fields["name"].annotation))


@pytest.mark.parametrize("name", BUILDERS)
def test_shapes_and_gradients(name: str) -> None:
    backbone = built(name)
    for module in backbone.net.modules():  # zero-initialised norms hide what lies behind them
        if isinstance(module, CrossRankNorm):
            nn.init.ones_(module.weight)
    maps = backbone.trunk(torch.randn(2, 3, 60, 36))
    assert maps.shape == (2, backbone.trunk_channels, 4, 3)
    last = backbone.last_stage(maps[..., :2])
    assert last.shape == (2, backbone.head_channels, 2, 1)
    (last.square().sum() + maps.square().sum()).backward()
    dead = [n for n, p in backbone.net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead
    both = {id(p) for part in (backbone.trunk, backbone.last_stage) for p in part.parameters()}
    assert both == {id(p) for p in backbone.net.parameters()}


@pytest.mark.parametrize("name", BUILDERS)
def test_the_split_is_the_network(name: str) -> None:
    """In training mode too: nothing is drawn in a forward."""
    backbone = built(name)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        split = backbone.last_stage(backbone.trunk(x))
        torch.testing.assert_close(backbone.last_stage(backbone.trunk(x)), split)
        whole = backbone.net(x)
    pooled = whole.mean((2, 3)) if whole.shape[2:] == split.shape[2:] else whole.flatten(1)
    torch.testing.assert_close(pooled, split.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_the_hybrid_trains_on_channels_last_maps() -> None:
    detector = tiny_config().model.detector.model_copy(update=dict.fromkeys(KINDS, FEW))
    model_config = PersonSearchConfig(backbone=config_of("swin_t"), detector=detector)
    model = tiny_model(tiny_config(model=model_config))
    batch = Batch(0, make_images((64, 96), [1]), make_images((64, 48), [1, 1], [[0], [-1]]))
    output = model(batch, model.denominators([batch]), step=5)
    output.total.backward()
    assert torch.isfinite(output.total)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_settings_that_do_not_fit_a_backbone_are_refused() -> None:
    for settings, message in (
        ({"name": "resnet50", "norm": "layer"}, "has batch norms alone"),
        ({"name": "swin_t", "norm": "frozen"}, "has layer norms alone"),
        ({"name": "resnet18", "width": 2.0}, "width is an option of shufflenet_v1"),
        ({"name": "shufflenet_v2", "groups": 8}, "groups is an option of shufflenet_v1 alone"),
    ):
        with pytest.raises(UserError, match=message):
            config_of(**{"name": "resnet18", **settings})
    with pytest.raises(UserError, match="do not divide the 25 channels"):
        built("shufflenet_v1", groups=2, width=0.5)


@pytest.mark.parametrize("groups", CHANNELS)
def test_shufflenet_v1_has_the_papers_channels(groups: int) -> None:
    with torch.device("meta"):
        backbone = built("shufflenet_v1", groups=groups)
    assert backbone.head_channels == 4 * CHANNELS[groups]
    assert (
        backbone.net.stage2[0].conv1.groups == 1 and backbone.net.stage3[0].conv1.groups == groups
    )


def test_frozen_norms_keep_the_dtype() -> None:
    norm, x = FrozenNorm(3), torch.randn(2, 3, 4, 4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    exact = F.batch_norm(x, norm.running_mean, norm.running_var, eps=norm.eps)
    torch.testing.assert_close(norm(x), exact)
    torch.testing.assert_close(norm(x.bfloat16()), norm(x.bfloat16().float()).bfloat16())


def test_re_estimated_norms_compute_in_training_what_frozen_ones_will() -> None:
    context = NormContext()
    norm, x = ReEstimatedNorm(3, context), torch.randn(4, 3, 5, 5) * 3 + 1
    nn.init.uniform_(norm.weight)
    for _ in range(60):
        trained = norm(x)
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)), rtol=0.01, atol=0.01)
    frozen = FrozenNorm(3)
    frozen.load_state_dict({n: v for n, v in norm.state_dict().items() if "canvas" not in n})
    torch.testing.assert_close(trained, frozen(x))
    with context.using("canvases"):
        norm(x)
    assert (norm.canvas_running_mean - norm.running_mean).abs().min() > 0.1
    norm(x).sum().backward()
    torch.testing.assert_close(norm.bias.grad, torch.full((3,), 100.0))
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def file_of(net: nn.Module, path: Path, **others: Tensor) -> Path:
    kept = {name: value for name, value in net.state_dict().items() if "canvas" not in name}
    kept = {name: torch.rand_like(v) if v.is_floating_point() else v for name, v in kept.items()}
    if path.suffix == ".safetensors":
        save_file(kept | others, path)
    else:
        torch.save({"state_dict": {f"module.{n}": v for n, v in (kept | others).items()}}, path)
    return path


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v1", "shufflenet_v2"])
@pytest.mark.parametrize("norm", ["frozen", "re_estimated", "cross_rank"])
def test_a_file_fills_a_backbone_and_is_accounted_for(name: str, norm: str, tmp_path: Path) -> None:
    suffix = ".pth" if norm == "frozen" else ".safetensors"
    path = file_of(built(name).net, tmp_path / f"weights{suffix}", **{"fc.bias": torch.zeros(2)})
    backbone, loaded = build_backbone(config_of(name, weights=str(path), norm=norm), NormContext())
    assert loaded is not None and loaded.unused == ("fc.bias",) and len(loaded.sha256) == 64
    norms = [m for m in backbone.net.modules() if isinstance(m, CrossRankNorm)]
    assert bool(norms) == (norm != "frozen")
    assert all(torch.equal(m.canvas_running_var, m.running_var) for m in norms)
    assert all((m.running_mean != 0).any() for m in norms)
    assert not any(p.requires_grad for module in backbone.stem for p in module.parameters())


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    def start(name: str, path: Path) -> None:
        build_backbone(config_of(name, weights=str(path)), NormContext())

    with pytest.raises(UserError, match="no file"):
        start("resnet18", tmp_path / "none.pth")
    for name in ("page.pth", "page.safetensors"):
        (tmp_path / name).write_text("<html>")
        with pytest.raises(UserError, match="cannot be read"):
            start("resnet18", tmp_path / name)
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(UserError, match="no tensors"):
        start("resnet18", tmp_path / "list.pth")
    narrow = file_of(built("shufflenet_v2", width=0.5).net, tmp_path / "narrow.pth")
    with pytest.raises(UserError, match=r"is not a resnet18: \d+ of \d+ tensors are absent"):
        start("resnet18", narrow)
    with pytest.raises(UserError, match=r"is another shufflenet_v2: .* differ in shape"):
        start("shufflenet_v2", narrow)
    state = built("resnet18").net.state_dict()
    state["layer1.0.bn1.running_var"][0] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(UserError, match="not finite in layer1"):
        start("resnet18", tmp_path / "nan.pth")


def test_imagenet_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    config = config_of("resnet18", weights="imagenet", norm="frozen")
    with pytest.raises(UserError, match=r"Fetch https://.*resnet18-.*pth .*and put it into"):
        build_backbone(config, NormContext())
    file_of(built("resnet18").net, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    with pytest.raises(UserError, match="is damaged"):
        build_backbone(config, NormContext())
    monkeypatch.setattr("training.model.weights.sha256_of", lambda path: "f37072fd")
    assert build_backbone(config, NormContext())[1].origin.startswith("https://")
    with pytest.raises(UserError, match="torchvision has no ImageNet weights of shufflenet_v1"):
        built("shufflenet_v1", weights="imagenet", norm="frozen")


class AuthorsNetwork:
    """ShuffleNet v1 as its authors' weights mean it, of random weights under their names."""

    def __init__(self, groups: int, width: float) -> None:
        own = built("shufflenet_v1", groups=groups, width=width).net
        self.groups = groups
        self.weights = {"classifier.0.weight": torch.zeros(2, 2)}
        self._add("first_conv.0", "first_conv.1", own.conv1, own.bn1)
        self.units = [*own.stage2, *own.stage3, *own.stage4]
        for number, unit in enumerate(self.units):
            main = f"features.{number}.branch_main_"
            self._add(f"{main}1.0", f"{main}1.1", unit.conv1, unit.bn1)
            self._add(f"{main}1.3", f"{main}1.4", unit.conv2, unit.bn2)
            self._add(f"{main}2.0", f"{main}2.1", unit.conv3, unit.bn3)

    def _add(self, conv_name: str, norm_name: str, conv: nn.Conv2d, norm: nn.Module) -> None:
        scale = conv.weight[0].numel() ** -0.5
        self.weights[f"{conv_name}.weight"] = torch.randn_like(conv.weight) * scale
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            self.weights[f"{norm_name}.{tensor}"] = torch.rand(len(conv.weight)) + 0.5
        self.weights[f"{norm_name}.num_batches_tracked"] = torch.tensor(3)

    def _step(self, x: Tensor, conv: str, norm: str, **options: int) -> Tensor:
        w = self.weights
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(
            F.conv2d(x, w[f"{conv}.weight"], **options), *(w[f"{norm}.{n}"] for n in names)
        )

    def __call__(self, bgr: Tensor, padding: Tensor) -> Tensor:
        """(N, 3, H, W) of 0 to 255, and the colour (3, 1, 1) around it -> (N, C, H/32, W/32)."""
        framed = F.pad(bgr - padding, (1, 1, 1, 1)) + padding
        x = F.relu(self._step(framed, "first_conv.0", "first_conv.1", stride=2))
        x = F.max_pool2d(x, 3, 2, 1)
        for number, unit in enumerate(self.units):
            main, stride = f"features.{number}.branch_main_", unit.stride
            y = F.relu(self._step(x, f"{main}1.0", f"{main}1.1", groups=unit.conv1.groups))
            hidden = y.shape[1]
            y = self._step(y, f"{main}1.3", f"{main}1.4", stride=stride, padding=1, groups=hidden)
            dealt = torch.cat([y[:, g :: self.groups] for g in range(self.groups)], dim=1)
            y = self._step(dealt, f"{main}2.0", f"{main}2.1", groups=self.groups)
            mean = F.avg_pool2d(x, 3, 2, 1) if stride == 2 else None
            x = F.relu(x + y) if mean is None else torch.cat([mean, F.relu(y)], dim=1)
        return x


@pytest.mark.parametrize("width", [0.5, 1.0])
def test_the_authors_shufflenet_v1_computes_the_same_here(width: float, tmp_path: Path) -> None:
    theirs = AuthorsNetwork(3, width)
    torch.save({"state_dict": theirs.weights}, tmp_path / "theirs.pth")
    settings = {"weights": str(tmp_path / "theirs.pth"), "width": width, "norm": "frozen"}
    backbone, loaded = build_backbone(config_of("shufflenet_v1", **settings), NormContext())
    assert loaded is not None and loaded.unused == ("classifier.0.weight",)
    rgb = torch.randint(0, 256, (1, 3, 64, 64)).float()
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        ours = backbone.last_stage(backbone.trunk((rgb / 255 - mean) / std))
        expected = theirs(rgb.flip(1), 255 * mean.flip(0))
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_shufflenet_v1_files_whose_order_has_no_counterpart_are_refused(tmp_path: Path) -> None:
    torch.save(AuthorsNetwork(8, 0.5).weights, tmp_path / "theirs.pth")
    settings = {"weights": str(tmp_path / "theirs.pth"), "width": 0.5, "norm": "frozen"}
    with pytest.raises(UserError, match="with 8 groups, cannot be put into the order"):
        built("shufflenet_v1", groups=8, **settings)
    whole = AuthorsNetwork(3, 0.5).weights
    cut = {name: value for name, value in whole.items() if "features.2." not in name}
    for broken in (cut, whole | {"features.x.weight": torch.zeros(1)}):
        torch.save(broken, tmp_path / "theirs.pth")
        with pytest.raises(UserError, match="not a whole ShuffleNet v1"):
            built("shufflenet_v1", **settings)


def test_shuffle_is_the_papers() -> None:
    """Each group of what follows sees every group of what came before (figure 1)."""
    x = torch.arange(12.0)[None, :, None, None]
    assert shuffle(x, 3).flatten().tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
