"""Export: what other code loads computes what the trained model computes, and gaps are refused."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import UserError
from training.export.exported import Exported, export
from training.export.files import write_files
from training.model.person_search import PersonSearch, PersonSearchConfig


class Trained(nn.Module):
    """The person-search model where the hybrid model keeps it, beside parts that no target knows."""

    def __init__(self, config: PersonSearchConfig) -> None:
        super().__init__()
        self.search = PersonSearch(config, seed=0)
        self.predictor = nn.Linear(4, 4)

    def features(self, x: Tensor) -> Tensor:
        return self.search.head["layer4"](self.search.backbone(x)).mean((2, 3))


def config(name: str, **parts: object) -> PersonSearchConfig:
    backbone = {"name": name, "weights": "random", "norm": "cross_rank"}
    return PersonSearchConfig.model_validate({"backbone": backbone, **parts})


@cache
def trained(name: str) -> Trained:
    """Shared by the tests: those that damage its state copy it first."""
    torch.manual_seed(0)
    model = Trained(config(name))
    for module_name, buffer in model.named_buffers():
        if buffer.is_floating_point() and "running" in module_name:
            nn.init.uniform_(buffer, 0.5, 1.5)
        elif module_name.endswith("num_batches_tracked"):
            buffer.fill_(7)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def exported(target: str, name: str = "resnet50", part: str | None = None) -> Exported:
    return export(target, part, trained(name).state_dict(), config(name))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_loads_every_key_but_fc_and_computes_the_same(
    name: str, tmp_path: Path
) -> None:
    model = trained(name)
    write_files(exported("torchvision", name), tmp_path / "weights", {}, "# card")
    x = torch.randn(2, 3, 64, 64)
    for load in (
        lambda: torch.load(tmp_path / "weights.pth", weights_only=True),
        lambda: load_file(tmp_path / "weights.safetensors"),
    ):
        net = getattr(torchvision.models, name)(weights=None)
        result = net.load_state_dict(load(), strict=False)
        assert set(result.missing_keys) == {"fc.weight", "fc.bias"}
        assert not result.unexpected_keys
        net.fc = nn.Identity()
        with torch.no_grad():
            torch.testing.assert_close(net.eval()(x), model.features(x), rtol=1e-4, atol=1e-5)


def test_the_account_names_every_tensor_on_both_sides(tmp_path: Path) -> None:
    state = trained("resnet18").state_dict()
    files = write_files(
        exported("torchvision", "resnet18"), tmp_path / "out" / "weights", {"step": 12}, "# card"
    )
    account = json.loads((tmp_path / "out" / "weights.json").read_text())
    assert account["step"] == 12
    assert set(account["missing"]) == {"fc.bias", "fc.weight"}
    assert set(account["mapped"].values()) | set(account["dropped"]) == set(state)
    assert "predictor.weight" in account["dropped"]
    assert any("canvas_running_mean" in name for name in account["dropped"])
    assert set(account["sha256"]) == {"weights.safetensors", "weights.pth"}
    assert sum(row["given"] for row in account["coverage"]) == len(account["mapped"])
    assert all(row["given"] == row["wanted"] for row in account["coverage"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        p.name for p in files
    )


def test_running_statistics_are_those_of_the_scenes() -> None:
    state = trained("resnet18").state_dict()
    found = exported("torchvision", "resnet18").tensors
    assert torch.equal(found["bn1.running_mean"], state["search.backbone.bn1.running_mean"])
    assert found["layer4.1.bn2.num_batches_tracked"] == 7


def test_frozen_norms_have_no_counters_and_export_says_that_it_adds_them() -> None:
    state = trained("resnet18").state_dict()
    shared = [name for name in state if name.startswith(("search.backbone", "search.head"))]
    counters = [name for name in shared if name.endswith("num_batches_tracked")]
    kept = {name: value for name, value in state.items() if name not in counters}
    found = export("torchvision", None, kept, config("resnet18"))
    assert len(found.added) == len(counters)
    assert all(found.tensors[name] == 0 for name in found.added)


def drop(state: dict[str, Tensor]) -> None:
    del state["search.head.layer4.0.conv1.weight"]


def reshape(state: dict[str, Tensor]) -> None:
    state["search.backbone.conv1.weight"] = torch.zeros(64, 3, 3, 3)


def poison(state: dict[str, Tensor]) -> None:
    state["search.backbone.bn1.running_var"][3] = torch.nan


@pytest.mark.parametrize(
    ("damage", "message"),
    [(drop, "layer4.0.conv1.weight is absent"), (reshape, "wants"), (poison, "not finite")],
)
@pytest.mark.parametrize(("target", "name"), [("torchvision", "resnet18"), ("nae", "resnet50")])
def test_anything_short_of_full_coverage_is_refused(
    target: str, name: str, damage, message: str
) -> None:
    state = {key: value.clone() for key, value in trained(name).state_dict().items()}
    damage(state)
    with pytest.raises(UserError, match=message):
        export(target, None, state, config(name))


def test_another_backbone_and_an_unknown_target_are_refused() -> None:
    state = trained("resnet18").state_dict()
    with pytest.raises(UserError, match="nothing was exported"):
        export("torchvision", None, state, config("resnet50"))
    with pytest.raises(UserError, match="there are: torchvision"):
        export("caffe", None, state, config("resnet18"))
    with pytest.raises(UserError, match="takes ResNets"):
        export("torchvision", None, state, config("shufflenet_v1"))
    with pytest.raises(UserError, match="takes the backbone alone"):
        export("torchvision", "model", state, config("resnet18"))
    with pytest.raises(UserError, match="is a resnet50 in its published code"):
        export("nae", None, state, config("resnet18"))


def test_whoever_may_read_one_file_may_read_all(tmp_path: Path) -> None:
    files = write_files(exported("torchvision", "resnet18"), tmp_path / "weights", {}, "# card")
    assert len({path.stat().st_mode for path in files}) == 1


def test_where_nothing_can_be_written_the_user_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the export"):
        write_files(exported("torchvision", "resnet18"), tmp_path / "file/weights", {}, "# card")
