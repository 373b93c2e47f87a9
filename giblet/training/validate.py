"""Scores of the whole validation split, alike on every rank: true counts, globally reduced sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from giblet.data.batches import Batch, BatchBuilder
from giblet.models.losses import TERMS, Losses, token_hits
from giblet.training.parallel import ParallelModel, World
from giblet.training.step import forward_pass


class VoxelCorrelation:
    """Pearson's r of each voxel over time, from running sums; V voxels, float64.

    Sums are exact enough since BOLD is z-scored within each run.
    """

    def __init__(self, subject_voxels: Sequence[int], device: torch.device) -> None:
        self._subject_voxels = list(subject_voxels)
        self.sums = torch.zeros(6, sum(subject_voxels), dtype=torch.float64, device=device)

    def add(self, predicted: Tensor, bold: Tensor, counted: Tensor) -> None:
        """`predicted` and `bold` (N, V), `counted` (N, S) per subject."""
        rows = counted.any(dim=1)
        widths = torch.tensor(self._subject_voxels, device=counted.device)
        mask = torch.repeat_interleave(counted[rows], widths, dim=1, output_size=bold.shape[1])
        x, y = torch.where(mask, predicted[rows].float(), 0.0), torch.where(mask, bold[rows], 0.0)
        self.sums += torch.stack([part.sum(dim=0, dtype=torch.float64) for part in (mask, x, y, x * x, y * y, x * y)])

    def correlation(self) -> Tensor:
        """r (V,): 0 where the prediction does not vary, NaN where the scan does not or there is none."""
        n, x, y, xx, yy, xy = self.sums
        variance_x, variance_y = n * xx - x * x, n * yy - y * y
        scale = (variance_x.clamp(min=0) * variance_y.clamp(min=0)).sqrt()
        r = torch.where(scale > 0, (n * xy - x * y) / scale.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        return torch.where(variance_y > 1e-12 * n * n, r.clamp(-1.0, 1.0), torch.nan)


class Validation:
    """Scores a model on the validation split."""

    def __init__(self, builder: BatchBuilder, losses: Losses, world: World, micro_batch: int, bf16: bool) -> None:
        self._builder, self._losses, self._world = builder, losses, world
        self._micro_batch, self._bf16 = micro_batch, bf16

    def __len__(self) -> int:
        return len(self._builder)

    @torch.no_grad()
    def __call__(self, parallel: ParallelModel, on_batch: Callable[[], None] = lambda: None) -> dict[str, float]:
        """`loss` and each of `TERMS` as ratios, `bold_correlation` (mean over voxels), `token_accuracy`.

        Every rank makes the same number of forward passes, for a sharded model gathers its weights in each; a rank
        that has run out repeats a sample with nothing in it that counts. `on_batch` is called before each.
        """
        device, model = self._world.device, parallel.module
        evaluated = ParallelModel(model, model, parallel.accumulate)
        one = torch.ones(len(TERMS), device=device)
        sums = torch.zeros(2 * len(TERMS) + 1, dtype=torch.float64, device=device)
        correlation = VoxelCorrelation(self._losses.subject_voxels, device)
        was_training = model.training
        model.eval()
        for host_batch in self._batches():
            on_batch()
            terms, outputs, batch = forward_pass(evaluated, host_batch, self._losses, one, self._bf16)
            sums[: len(TERMS)] += torch.stack([terms[name] for name in TERMS])
            sums[len(TERMS) : -1] += self._losses.counts(batch)
            sums[-1] += token_hits(outputs, batch)
            correlation.add(outputs["predicted_fmri"], batch.bold, batch.bold_mask & batch.target_mask[:, None])
        model.train(was_training)
        self._world.sum(sums)
        self._world.sum(correlation.sums)
        return self._scores(sums, correlation)

    def _batches(self) -> Iterator[Batch]:
        """This rank's micro-batches; as many on every rank."""
        samples, size, world = len(self._builder), self._micro_batch, self._world
        starts = range(0, samples, size)
        for first in range(0, len(starts), world.size):
            index = first + world.rank
            if index < len(starts):
                yield self._builder.build(range(starts[index], min(starts[index] + size, samples)))
            else:
                yield _nothing_counts(self._builder.build([0]))

    def _scores(self, sums: Tensor, correlation: VoxelCorrelation) -> dict[str, float]:
        totals, counts, hits = sums[: len(TERMS)].tolist(), sums[len(TERMS) : -1].tolist(), sums[-1].item()
        scores = {name: total / max(count, 1.0) for name, total, count in zip(TERMS, totals, counts, strict=True)}
        r = correlation.correlation()
        known = r[~r.isnan()]
        return {
            "loss": sum(self._losses.weights[name] * scores[name] for name in TERMS),
            **scores,
            "bold_correlation": known.mean().item() if known.numel() else 0.0,
            "token_accuracy": hits / max(counts[TERMS.index("audio")], 1.0),
        }


def _nothing_counts(batch: Batch) -> Batch:
    """The same rows, none of which is a target."""
    return replace(batch, target_mask=torch.zeros_like(batch.target_mask))
