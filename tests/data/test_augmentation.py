"""Flips and crops on the device, against torchvision's own on one image after the other."""

from __future__ import annotations

import pytest
import torch
from conftest import begin, settings_of, some_data
from torchvision.transforms.v2 import functional as V

from landscape_cli import training
from landscape_cli.data import augmentation
from landscape_cli.registry.errors import Fault


def generators(*seeds: int) -> list[torch.Generator]:
    return [training.stream(seed, "augment", 0) for seed in seeds]


def test_each_image_is_padded_cut_and_mirrored() -> None:
    X = torch.randn(2, 30, 3, 6, 5)
    window = augmentation.windows(generators(0, 1), 30, True, 2)
    got = augmentation.augmented(X, window, 2)
    for a in range(2):
        for i in range(30):
            top, left, mirrored = window[a, i].tolist()
            due = V.crop(V.pad(X[a, i], [2, 2]), top, left, 6, 5)
            assert torch.equal(got[a, i], V.horizontal_flip(due) if mirrored else due)
    still = augmentation.windows(generators(0), 30, False, 0)
    assert torch.equal(augmentation.augmented(X[:1], still, 0), X[:1])


def test_draws_are_uniform_and_each_runs_own() -> None:
    window = augmentation.windows(generators(0, 1), 3000, True, 4)
    assert torch.equal(window[1], augmentation.windows(generators(1), 3000, True, 4)[0])
    assert (window[0] != window[1]).any()
    for column, ends in ((0, 9), (1, 9), (2, 2)):
        share = torch.bincount(window[0, :, column], minlength=ends) / 3000
        assert len(share) == ends
        assert (share - 1 / ends).abs().max() < 4 * (1 / ends / 3000) ** 0.5


def test_what_a_sample_gets_does_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen, keep = some_data(12, (1, 4, 4)), {}, augmentation.augmented
    for batch in (3, 12, "full"):
        rows: list[torch.Tensor] = []
        monkeypatch.setattr(
            augmentation, "augmented", lambda X, w, c, rows=rows: rows.append(keep(X, w, c)) or rows[-1]
        )
        s = settings_of(batch_size=batch, flip=True, crop=1, stop={"max_epochs": 2})
        net, state, buffers = begin({"name": "mlp", "hidden": [4]}, data, [s], [5])
        list(training.train(net, data, [s], [5], state, buffers))
        monkeypatch.setattr(augmentation, "augmented", keep)
        both = torch.cat([r[0] for r in rows]).flatten(1).split(12)
        assert len(both) == 2
        seen[batch] = [{tuple(x.tolist()) for x in epoch} for epoch in both]
    for epoch in range(2):  # each sample is moved by its own draw, wherever the shuffle puts it
        window = augmentation.windows([training.stream(5, "augment", epoch)], 12, True, 1)
        due = augmentation.augmented(data.x_train[None], window, 1)[0].flatten(1)
        assert seen[3][epoch] == {tuple(x.tolist()) for x in due}
    assert seen[3] == seen[12] == seen["full"] and seen[3][0] != seen[3][1]


def test_only_images_can_be_flipped() -> None:
    data, s = some_data(12, (16,)), settings_of(flip=True)
    net, state, buffers = begin({"name": "mlp", "hidden": [4]}, data, [s], [5])
    with pytest.raises(Fault, match=r"training.flip, training.crop: samples of shape \(16,\) are no images"):
        list(training.train(net, data, [s], [5], state, buffers))
