"""The learning rate of a step, and which parameter is in which group."""

import pytest
from torch import nn

from training.schedule import OptimiserConfig, build_optimizer, lr_factor, peak_lr, set_lr

PLAIN = OptimiserConfig(lr=1.0, lr_per_images=None, warmup_steps=10)


@pytest.mark.parametrize(("step", "factor"), [(0, 0.1), (4, 0.5), (9, 1.0), (69, 1.0), (70, 0.1)])
def test_step_decay_after_linear_warm_up(step: int, factor: float) -> None:
    assert lr_factor(PLAIN, step, 100) == pytest.approx(factor)


@pytest.mark.parametrize(("step", "factor"), [(9, 1.0), (10, 1.0), (55, 0.5), (100, 0.0)])
def test_cosine_reaches_zero_at_the_end(step: int, factor: float) -> None:
    config = PLAIN.model_copy(update={"decay": "cosine"})
    assert lr_factor(config, step, 100) == pytest.approx(factor)


def test_constant_parameters_warm_up_and_stay() -> None:
    assert lr_factor(PLAIN, 4, 100, constant=True) == pytest.approx(0.5)
    assert lr_factor(PLAIN, 99, 100, constant=True) == 1.0


def test_warm_up_longer_than_the_run() -> None:
    config = PLAIN.model_copy(update={"decay": "cosine", "warmup_steps": 500})
    assert lr_factor(config, 99, 100) == pytest.approx(0.2)


def test_lr_grows_with_the_batch() -> None:
    config = OptimiserConfig(lr=0.003, lr_per_images=5)
    assert peak_lr(config, 5) == pytest.approx(0.003)
    assert peak_lr(config, 40) == pytest.approx(0.024)
    assert peak_lr(PLAIN, 40) == 1.0


def small_model() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    return model


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_every_trainable_parameter_is_in_one_group(kind: str) -> None:
    model = small_model()
    config = PLAIN.model_copy(update={"kind": kind, "weight_decay": 0.1})
    optimizer = build_optimizer(model, config, 5, {"2.weight", "2.bias"})
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {
        names[id(p)]: (group["weight_decay"], group["constant"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert groups == {
        "0.weight": (0.1, False),
        "1.weight": (0.0, False),
        "1.bias": (0.0, False),
        "2.weight": (0.1, True),
        "2.bias": (0.0, True),
    }


@pytest.mark.parametrize(("switch", "spared"), [(True, set()), ("norms", {"1.bias", "2.bias"})])
def test_decay_of_vectors_is_a_switch(switch: bool | str, spared: set[str]) -> None:
    config = OptimiserConfig.model_validate(
        {**PLAIN.model_dump(), "decay_vectors": switch, "weight_decay": 0.1}
    )
    model = small_model()
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: group["weight_decay"]
        for group in build_optimizer(model, config, 5).param_groups
        for p in group["params"]
    }
    trained = {"0.weight", "1.weight", "1.bias", "2.weight", "2.bias"}
    assert found == {name: 0.0 if name in spared else 0.1 for name in trained}


def test_set_lr_moves_all_groups() -> None:
    optimizer = build_optimizer(small_model(), PLAIN, 5, {"2.weight"})
    assert set_lr(optimizer, PLAIN, 80, 100) == pytest.approx(0.1)
    rates = {group["constant"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {False: pytest.approx(0.1), True: 1.0}


def test_unknown_constant_parameter_is_an_error() -> None:
    with pytest.raises(ValueError, match="head"):
        build_optimizer(small_model(), PLAIN, 5, {"head.weight"})
