"""Each loss against an independent float64 reference in plain loops, its gradient, the empty batch."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from training.losses.detection import RPN_BETA, box_loss, classification_loss
from training.losses.domain import (
    AlignmentModule,
    DomainInput,
    consistency_loss,
    image_loss,
    scale_gradient,
)
from training.losses.oim import OimConfig, OimTables, TableRows
from training.losses.similarity import collapse_indicator, similarity_loss

RNG = np.random.default_rng(0)


def leaf(*shape: int) -> torch.Tensor:
    return torch.tensor(RNG.normal(size=shape), requires_grad=True)


def unit_rows(*shape: int) -> torch.Tensor:
    rows = RNG.normal(size=shape)
    return torch.tensor(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def test_classification_loss() -> None:
    logits, labels = leaf(3, 5), torch.tensor(RNG.integers(0, 2, (3, 5)).astype(float))
    weights = torch.tensor(RNG.integers(0, 2, (3, 5)).astype(float))
    expected = 0.0
    for x, y, w in zip(logits.detach().flatten(), labels.flatten(), weights.flatten()):
        p = 1 / (1 + math.exp(-x))
        expected -= float(w) * (float(y) * math.log(p) + (1 - float(y)) * math.log(1 - p))
    loss = classification_loss(logits, labels, weights)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-12)
    assert gradcheck(lambda x: classification_loss(x, labels, weights), logits)


def test_box_loss() -> None:
    deltas, target = leaf(2, 4, 4), torch.tensor(RNG.normal(size=(2, 4, 4)))
    labels, weights = torch.tensor([[1.0, 0, 1, 1]] * 2), torch.tensor([[1.0, 1, 0, 1]] * 2)
    expected = 0.0
    for n in range(2):
        for q in (0, 3):  # foreground and not padded
            for d in (deltas[n, q] - target[n, q]).tolist():
                small = abs(d) < RPN_BETA
                expected += d * d / (2 * RPN_BETA) if small else abs(d) - RPN_BETA / 2
    loss = box_loss(deltas, target, labels, weights, RPN_BETA)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-12)
    assert gradcheck(lambda x: box_loss(x, target, labels, weights, RPN_BETA), deltas)


def test_similarity_loss() -> None:
    h, z = (leaf(4, 6), leaf(4, 6)), (leaf(4, 6), leaf(4, 6))
    weights = torch.tensor([0.5, 0.5, 1.0, 0.0], dtype=torch.float64)

    def cos(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    h1, h2, z1, z2 = (x.detach().numpy() for x in (*h, *z))
    expected = -sum(
        float(w) * (cos(h2[i], z1[i]) + cos(h1[i], z2[i])) / 2 for i, w in enumerate(weights)
    )
    loss = similarity_loss(h, z, weights)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-12)
    loss.backward()
    assert h[0].grad is None and h[1].grad is None  # the stop-gradient is on h
    assert z[0].grad is not None
    assert gradcheck(lambda a, b: similarity_loss(h, (a, b), weights), z)


def test_collapse_indicator_tells_spread_from_one_point() -> None:
    h = torch.randn(40, 16, dtype=torch.float64)
    total, pairs = collapse_indicator(h)
    unit = h / h.norm(dim=1, keepdim=True)
    deviation = unit.std(dim=0).square().sum()  # SimSiam's indicator is its root
    assert float(total) / pairs == pytest.approx(float(deviation), abs=1e-12)
    total, pairs = collapse_indicator(torch.randn(1, 16).repeat(40, 1))
    assert float(total) / pairs == pytest.approx(0.0, abs=1e-5)
    assert collapse_indicator(h[:1])[1] == 0


def filled_tables(config: OimConfig) -> OimTables:
    tables = OimTables(config, 4, 5).double()
    tables.lut.copy_(unit_rows(4, 5))
    tables.queue.copy_(unit_rows(3, 5))
    tables.lut_filled.copy_(torch.tensor([True, True, False, True]))
    tables.queue_filled.copy_(torch.tensor([True, False, True]))
    return tables


@pytest.mark.parametrize("mask", [True, False])
def test_oim_labelled_loss(mask: bool) -> None:
    tables = filled_tables(OimConfig(scale=7.0, queue=3, mask_empty=mask))
    x, identity = leaf(3, 5), torch.tensor([1, 3, 2])
    weights = torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64)
    rows = np.concatenate([tables.lut.numpy(), tables.queue.numpy()])
    filled = [True, True, False, True, True, False, True]
    expected = 0.0
    for i, (target, weight) in enumerate(zip(identity.tolist(), weights.tolist())):
        if mask and not filled[target]:
            continue
        columns = [c for c in range(7) if filled[c] or not mask]
        p = softmax(7.0 * rows[columns] @ x[i].detach().numpy())
        expected -= weight * math.log(p[columns.index(target)])
    loss = tables.labelled_loss(x, identity, weights)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-10)
    assert gradcheck(lambda e: tables.labelled_loss(e, identity, weights), x)


def test_oim_instance_loss() -> None:
    tables = filled_tables(OimConfig(queue=3, instance_scale=5.0))
    tables.queue_instance.copy_(torch.tensor([10, 11, 12]))
    x, positive = leaf(2, 5), unit_rows(2, 5)
    instance, weights = torch.tensor([12, 99]), torch.ones(2, dtype=torch.float64)
    lut, queue = tables.lut.numpy()[[0, 1, 3]], tables.queue.numpy()
    expected = 0.0
    for i, others in enumerate([[queue[0]], [queue[0], queue[2]]]):  # own older entry left out
        p = softmax(5.0 * np.stack([positive[i].numpy(), *lut, *others]) @ x[i].detach().numpy())
        expected -= math.log(p[0])
    loss = tables.instance_loss(x, instance, positive, weights)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-10)
    assert gradcheck(lambda e: tables.instance_loss(e, instance, positive, weights), x)


def rows_of(embedding: torch.Tensor, identity: list[int], position: list[int]) -> TableRows:
    order = torch.tensor([[0, p, 0] for p in position]).reshape(-1, 3)
    return TableRows(embedding, torch.tensor(identity).long(), torch.tensor(position).long(), order)


def test_oim_update_averages_an_identity_then_moves_its_row() -> None:
    tables = filled_tables(OimConfig(momentum=0.5, queue=3))
    before, x = tables.lut.numpy().copy(), unit_rows(4, 5)
    tables.update(rows_of(x, [0, 0, 2, 3], [0, 1, 2, 3]).gathered())
    mean = x[:2].numpy().mean(0)
    moved = 0.5 * before[0] + 0.5 * mean / np.linalg.norm(mean)
    np.testing.assert_allclose(tables.lut[0], moved / np.linalg.norm(moved), atol=1e-12)
    np.testing.assert_allclose(tables.lut[2], x[2], atol=1e-12)  # was empty: takes the embedding
    np.testing.assert_allclose(tables.lut[1], before[1])
    assert tables.lut_filled.all()


def test_oim_queue_is_circular_and_in_order_of_position() -> None:
    tables = OimTables(OimConfig(queue=3), 2, 5).double()
    x = unit_rows(4, 5)
    tables.update(rows_of(x[:2], [-1, -1], [5, 4]).gathered())
    np.testing.assert_allclose(tables.queue[:2], x[[1, 0]])
    tables.update(rows_of(x[2:], [-1, -1], [6, 7]).gathered())
    np.testing.assert_allclose(tables.queue, x[[3, 0, 2]])
    assert int(tables.queue_head) == 1
    more = unit_rows(5, 5)  # more than the queue holds: the newest stay
    tables.update(rows_of(more, [-1] * 5, list(range(8, 13))).gathered())
    assert {tuple(r) for r in tables.queue.tolist()} == {tuple(r) for r in more[2:].tolist()}


def domain_input(images: int = 2, rows: int = 3) -> DomainInput:
    pixels = torch.tensor(RNG.integers(0, 2, (images, 2, 3)).astype(float))
    pixels[:, 0, 0] = 1
    return DomainInput(
        leaf(images, 4, 2, 3),
        pixels,
        torch.tensor([0, 2][:images]).long(),
        leaf(rows, 5),
        torch.tensor([0, 1, 1][:rows]).long(),
        torch.tensor([1.0, 1.0, 0.0][:rows], dtype=torch.float64),
    )


def test_domain_losses() -> None:
    x = domain_input()
    image_logits, instance_logits = leaf(2, 3, 2, 3), leaf(3, 3)
    pixels = x.pixels.numpy()
    expected_image = expected_consistency = 0.0
    means = []
    for b in range(2):
        cells = [(i, j) for i in range(2) for j in range(3) if pixels[b, i, j]]
        p = [softmax(image_logits.detach().numpy()[b, :, i, j]) for i, j in cells]
        expected_image -= sum(math.log(c[int(x.image_domain[b])]) for c in p) / len(p)
        means.append(np.mean(p, axis=0))
    for r in range(3):
        difference = means[int(x.image[r])] - softmax(instance_logits.detach().numpy()[r])
        expected_consistency += float(x.weights[r]) * float(np.linalg.norm(difference))
    image = image_loss(image_logits, x.pixels, x.image_domain)
    consistency = consistency_loss(image_logits, instance_logits, x.pixels, x.image, x.weights)
    assert float(image.detach()) == pytest.approx(expected_image, abs=1e-10)
    assert float(consistency.detach()) == pytest.approx(expected_consistency, abs=1e-9)
    assert gradcheck(lambda a: image_loss(a, x.pixels, x.image_domain), image_logits)
    assert gradcheck(
        lambda a, b: consistency_loss(a, b, x.pixels, x.image, x.weights),
        (image_logits, instance_logits),
    )


def test_domain_gradients_are_reversed_for_features_only() -> None:
    module = AlignmentModule((4, 5), 3).double()
    x = domain_input()

    def gradients(part: str, coefficient: float) -> tuple[torch.Tensor, torch.Tensor]:
        sums, _ = module(x, coefficient)
        head = module.image_head[0].weight
        feature, weight = torch.autograd.grad(sums[part], (x.maps, head))
        return feature, weight

    for part, sign in (("image", -1), ("consistency", 1)):
        feature, weight = gradients(part, 0.3)
        plain, _ = gradients(part, float(sign))  # what the features would get by themselves
        torch.testing.assert_close(feature, sign * 0.3 * plain)
        torch.testing.assert_close(weight, gradients(part, 0.9)[1])  # heads learn at full rate
    step = -1e-3 * gradients("image", 0.3)[0]
    with torch.no_grad():
        x.maps.add_(step)
        after = module(x, 0.3)[0]["image"]
        x.maps.sub_(step)
        assert after > module(x, 0.3)[0]["image"]  # descending confuses the classifier
    scaled = scale_gradient(x.instances, -2.0).sum()
    torch.testing.assert_close(
        torch.autograd.grad(scaled, x.instances)[0], torch.full((3, 5), -2.0).double()
    )


def test_a_pooled_image_head_is_the_last_layer_of_the_valid_cells_mean() -> None:
    module = AlignmentModule((4, 5), 3, pooled=True).double()
    x = domain_input()
    hidden = module.image_head[:2](x.maps) * x.pixels[:, None]
    mean = hidden.sum((2, 3)) / x.pixels.sum((1, 2))[:, None]
    last = module.image_head[2]
    logits = mean @ last.weight[:, :, 0, 0].T + last.bias
    expected = torch.nn.functional.cross_entropy(logits, x.image_domain, reduction="sum")
    torch.testing.assert_close(module(x, 0.1)[0]["image"], expected)


def test_empty_batches_give_zero_with_a_gradient() -> None:
    tables = filled_tables(OimConfig(queue=3))
    none, ids = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    x = torch.zeros(0, 5, dtype=torch.float64, requires_grad=True)
    z = torch.zeros(0, 6, dtype=torch.float64, requires_grad=True)
    module = AlignmentModule((4, 5), 3).double()
    sums, told = module(domain_input(images=1, rows=0), 0.1)
    losses = [
        tables.labelled_loss(x, ids, none),
        tables.instance_loss(x, ids, x, none),
        similarity_loss((z, z), (z, z), none),
        sums["instance"],
        sums["consistency"],
    ]
    for loss in losses:
        assert float(loss.detach()) == 0
        loss.backward(retain_graph=True)
    assert told.instances.tolist() == [[0, 0]] * 3
    before = tables.lut.clone()
    tables.update(rows_of(torch.zeros(0, 5).double(), [], []).gathered())
    torch.testing.assert_close(tables.lut, before)


def test_oim_without_identities_or_queue() -> None:
    tables = OimTables(OimConfig(queue=0), 0, 5).double()
    x = torch.zeros(0, 5, dtype=torch.float64, requires_grad=True)
    tables.labelled_loss(x, torch.zeros(0, dtype=torch.int64), torch.zeros(0)).backward()
    tables.update(rows_of(unit_rows(2, 5), [-1, -1], [0, 1]).gathered())
    assert tables.queue.shape == (0, 5)
