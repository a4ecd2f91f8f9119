"""The model's parts and the promise that every parameter gets a gradient whatever the batch."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from pipeline.batch import Batch, Use
from tests.batches import hybrid_batch, make_images
from tests.models import tiny_config, tiny_model
from training.hybrid import HybridConfig
from training.losses.domain_inputs import task_input
from training.losses.oim import OimConfig
from training.model import person_search
from training.model.detector import jittered_truth
from training.model.norm import CrossRankNorm, NormContext
from training.model.norm_aware import HeadsConfig
from training.model.sampling import balanced_sample, draw
from training.model.targets import GroundTruth, match


def empty_batch() -> Batch:
    return Batch(0, make_images((64, 96), [0, 0]), make_images((64, 48), [0, 0, 0]))


BATCHES = {
    "hybrid": hybrid_batch(),
    "detection only": replace(hybrid_batch(), canvases=None),
    "re-ID only": replace(hybrid_batch(), scenes=None),
    "nobody": empty_batch(),
    "no canvas on this rank": replace(hybrid_batch(), canvases=make_images((64, 48), [])),
    "no scene on this rank": replace(hybrid_batch(), scenes=make_images((64, 96), [])),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("unlabelled", ["queue", "instance"])
def test_every_parameter_gets_a_gradient(name: str, unlabelled: str) -> None:
    model = tiny_model(tiny_config(oim=OimConfig(queue=16, unlabelled=unlabelled)))
    batch = BATCHES[name]
    output = model(batch, model.denominators([batch]), step=5)
    output.total.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.update_tables([output.rows])


def test_every_loss_reaches_its_parameters() -> None:
    """Not by the zero that ties all parameters to the graph: by a gradient that is not zero."""
    linear = tiny_config().model.model_copy(update={"heads": HeadsConfig(classifier="linear")})
    for config in (tiny_config(), tiny_config(model=linear)):
        model, batch = tiny_model(config), hybrid_batch()
        for module in model.modules():  # zero-initialised norms hide what lies behind them
            if isinstance(module, CrossRankNorm) and not module.weight.any():
                torch.nn.init.ones_(module.weight)
        first = model(batch, model.denominators([batch]), step=5)
        model.update_tables([first.rows])
        model(batch, model.denominators([batch]), step=5).total.backward()
        dead = {n for n, p in model.named_parameters() if not p.grad.any()}
        # a bias before a norm moves nothing
        assert {n for n in dead if not n.endswith(".0.bias")} == set()


def changed(section: str, **values: object) -> HybridConfig:
    config = tiny_config()
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


SWITCHED_OFF = {
    "no similarity": (changed("weights", similarity=0.0), "predictor."),
    "no image alignment": (changed("alignment", image=0.0, consistency=0.0), "image_head"),
    "no instance alignment": (changed("alignment", instance=0.0, consistency=0.0), "instance_head"),
    "no RoI boxes": (changed("weights", roi_box=0.0), "box_regressor"),
    "no proposals": (changed("weights", rpn_class=0.0, rpn_box=0.0), "search.rpn"),
}


@pytest.mark.parametrize("name", SWITCHED_OFF)
def test_weight_zero_switches_a_loss_off(name: str) -> None:
    config, idle = SWITCHED_OFF[name]
    model, batch = tiny_model(config), hybrid_batch()
    model(batch, model.denominators([batch]), step=5).total.backward()
    gradients = {n: float(p.grad.abs().sum()) for n, p in model.named_parameters()}
    assert all(value == 0 for n, value in gradients.items() if idle in n)
    assert any(value > 0 for n, value in gradients.items() if idle not in n)


def test_a_run_without_similarity_reads_checkpoints_that_have_a_predictor() -> None:
    before = tiny_model(seed=1).state_dict()
    model = tiny_model(changed("weights", similarity=0.0))
    model.load_state_dict(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(RuntimeError, match="predictor"):
        tiny_model().load_state_dict(model.state_dict())


def test_alignment_tasks() -> None:
    def losses(*tasks: str) -> set[str]:
        model, batch = tiny_model(changed("alignment", tasks=tasks)), hybrid_batch()
        output = model(batch, model.denominators([batch]), step=5)
        assert torch.isfinite(output.total)
        return {n.rsplit("_", 1)[0] for n in output.losses if n.startswith("domain_")}

    assert losses() == set()
    assert losses("reid") == {"domain_reid"}
    assert losses("detection", "inter_task") == {"domain_detection", "domain_inter_task"}


def test_oim_as_a_mean_over_rois() -> None:
    model, batch = tiny_model(changed("oim", mean="roi")).double(), hybrid_batch()
    seen: list[tuple[float, float]] = []
    original = model.tables.labelled_loss

    def spy(unit: torch.Tensor, identity: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        loss = original(unit, identity, weights)
        seen.append((float(loss.detach()), float(weights.sum())))
        return loss

    model.update_tables([model(batch, model.denominators([batch]), step=4).rows])
    model.tables.labelled_loss = spy
    output = model(batch, model.denominators([batch]), step=5)
    sums, rois = zip(*seen)
    assert sum(sums) > 0 and sum(rois) > 2 * 5  # more RoIs than labelled people in both views
    assert float(output.losses["oim"]) == pytest.approx(sum(sums) / sum(rois), abs=1e-12)


def test_half_precision_keeps_geometry_and_logits_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_model(), hybrid_batch()
    seen: list[torch.Tensor] = []
    original = person_search.roi_align

    def spy(maps: torch.Tensor, rois: torch.Tensor, *rest: object, **more: object) -> torch.Tensor:
        seen.append(rois)
        return original(maps, rois, *rest, **more)

    monkeypatch.setattr(person_search, "roi_align", spy)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.search(batch.scenes, "scenes")
        cosines = model.tables._cosines(torch.randn(3, 256))
    exact = [*seen, out.anchors.logits, out.anchors.target_deltas, out.roi_logits, out.roi_deltas]
    assert out.maps.dtype == torch.bfloat16
    assert {t.dtype for t in [*exact, out.match_features.embedding, cosines]} == {torch.float32}
    anchors = model.search.rpn.anchors.cell_anchors[0]
    assert anchors.dtype == torch.float32


def test_losses_fall_on_one_batch() -> None:
    model, batch = tiny_model(), hybrid_batch()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    first: dict[str, float] = {}
    for step in range(12):
        output = model(batch, model.denominators([batch]), step)
        optimiser.zero_grad()
        output.total.backward()
        optimiser.step()
        model.update_tables([output.rows])
        losses = {name: float(value) for name, value in output.losses.items()}
        if step == 1:  # the first step fills the look-up table
            first = losses
    for name in ("rpn_class", "roi_class", "oim", "similarity"):
        assert losses[name] < first[name], name


def test_a_persons_votes_and_images_are_counted_by_the_batch_alone() -> None:
    model, batch = tiny_model(), hybrid_batch()
    counts = dict(zip(model.DENOMINATORS, model.denominators([batch]).tolist()))
    assert counts["labelled"] == 2 * 5 and counts["unlabelled"] == 2 * (6 + 3)
    assert counts["anchors"] == 2 * (4 * 32 + 8 * 16)
    assert counts["paired_images"] == 3 + 3  # scenes with persons, unlabelled canvases
    assert counts["canvas_persons"] == 2 * 8


def test_norm_equals_batch_norm_and_masks_rows() -> None:
    context = NormContext()
    ours, theirs = CrossRankNorm(3, context).double(), torch.nn.BatchNorm2d(3).double()
    x = torch.randn(4, 3, 5, 2, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    upstream = torch.randn(4, 3, 5, 2, dtype=torch.float64)
    ours(x).backward(upstream)
    theirs(y).backward(upstream)
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)

    rows = torch.tensor([1.0, 1, 0, 1]).double()
    with context.using("scenes", rows):
        masked = ours(x)
    kept = F.batch_norm(x[rows > 0], None, None, training=True)
    torch.testing.assert_close(masked[rows > 0], kept)


def test_norm_gradient_is_legal_for_single_and_masked_rows() -> None:
    context = NormContext()
    norm = CrossRankNorm(3, context).double()
    x = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    for rows in ([1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]):
        with context.using("canvases", torch.tensor(rows).double()):
            output = norm(x)
        assert torch.isfinite(torch.autograd.grad(output.sum(), x)[0]).all()

    def masked(value: torch.Tensor) -> torch.Tensor:
        with context.using("scenes", torch.tensor([1.0, 0.0, 1.0]).double()):
            return norm(value)

    assert torch.autograd.gradcheck(masked, x)


def test_norm_keeps_statistics_of_scenes_and_canvases_apart() -> None:
    context = NormContext()
    norm = CrossRankNorm(2, context)
    with context.using("canvases"):
        norm(torch.randn(8, 2) + 5)
    assert (norm.running_mean == 0).all() and (norm.canvas_running_mean > 0.3).all()
    norm.eval()
    with context.using("canvases"):
        there = norm(torch.full((1, 2), 5.0))
    assert not torch.allclose(there, norm(torch.full((1, 2), 5.0)))


def test_draws_depend_on_their_columns_alone() -> None:
    columns = torch.arange(1000)
    values = draw(3, 5, columns)
    assert len(values.unique()) == 1000 and int(values.min()) >= 0
    torch.testing.assert_close(draw(3, 5, columns.flip(0)), values.flip(0))
    assert not torch.equal(draw(4, 5, columns), values)
    assert abs(float(values.double().mean()) / 2**40 - 0.5) < 0.05


def test_balanced_sample_keeps_the_quota_and_ignores_order() -> None:
    labels = torch.tensor([[1, 1, 1, 0, 0, -1, -1, 0], [0, -1, -1, -1, -1, -1, -1, -1]])
    draws = draw(0, torch.arange(2)[:, None], torch.arange(8))
    index, weights = balanced_sample(labels, draws, 4)
    assert weights.tolist()[0] == [1, 1, 1, 1] and weights.tolist()[1] == [1, 0, 0, 0]
    assert int((labels[0][index[0]] == 1).sum()) == 2
    order = torch.randperm(8)
    shuffled, _ = balanced_sample(labels[:, order], draws[:, order], 4)
    assert set(order[shuffled[0]].tolist()) == set(index[0].tolist())
    few, weights = balanced_sample(labels[:, :2], draws[:, :2], 4)
    assert few.shape == (2, 4) and weights.tolist()[0] == [1, 1, 0, 0]


def test_matching_respects_ignore_regions() -> None:
    images = make_images((96, 128), [2])
    boxes = torch.tensor([[10.0, 10, 30, 50], [60.0, 10, 100, 90]])
    use = torch.tensor([int(Use.DETECT), int(Use.IGNORE)])
    view = replace(images.views[0], boxes=boxes, use=use)
    truth = GroundTruth.of(replace(images, views=(view, view)))
    candidates = torch.tensor(
        [[10.0, 10, 30, 48], [70.0, 20, 90, 60], [40.0, 60, 55, 90], [10.0, 10, 30, 75]]
    )
    labels = match(candidates, truth, 0.7, 0.3).labels[0].tolist()
    assert labels == [1, -1, 0, -1]  # person, inside the ignore region, background, in between


def test_anchors_lie_where_roi_align_looks() -> None:
    """Also where a side is no multiple of the stride: the last cell reaches beyond the image."""
    search = tiny_model().search
    maps = search.backbone(torch.zeros(1, 3, 72, 88))
    anchors = search.rpn._anchors(maps)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    x, y = (sorted(set(column.tolist())) for column in centres.T)
    assert x == [0, 16, 32, 48, 64, 80] and y == [0, 16, 32, 48, 64]
    assert len(anchors) == 5 * 6 * 2


def test_a_cell_shows_image_if_its_centre_does() -> None:
    images = make_images((72, 88), [1])
    images.views[1].valid.copy_(torch.tensor([[41, 39]]))
    out = tiny_model().search(images, "scenes")
    whole, part = task_input(out, images, images.domain.repeat(2)).pixels
    # centres at 8, 24, 40 ...: of 72 rows the fifth cell shows 8, of 88 columns the sixth as well
    assert whole.sum(0).tolist() == [4, 4, 4, 4, 4, 0]
    assert part.sum(0).tolist() == [3, 3, 0, 0, 0, 0]


def test_jittered_proposals_stay_on_their_persons() -> None:
    truth = GroundTruth.of(make_images((96, 128), [2, 0]))
    boxes, real = jittered_truth(truth, seed=1)
    assert real[0].any() and not real[1].any()
    assert (boxes[..., 2] <= 128).all() and (boxes[..., :2] >= 0).all()
