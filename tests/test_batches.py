"""Samples and masks are pure functions of (run_seed, pass, sample id)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetlab.batches import Batches, keyed_uniform
from budgetlab.errors import CallerError
from budgetlab.values import SpecialIds

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)


def make(samples: int = 50, **changes: object) -> Batches:
    stream = np.random.default_rng(0).integers(5, 300, size=samples * 14).astype(np.uint16)
    stream[::9] = SPECIAL.sep
    settings = {"seq_len": 16, "masked_per_sequence": 2, "run_seed": 3, **changes}
    return Batches(stream, SPECIAL, 300, **settings)  # type: ignore[arg-type]


@given(step=st.integers(0, 40), size=st.integers(1, 30))
def test_shapes_and_counts(step: int, size: int) -> None:
    batch = make().step(step, size)
    assert batch.input_ids.shape == (size, 16)
    assert len(batch.target_ids) == len(batch.target_positions) == 2 * size
    rows, columns = np.divmod(batch.target_positions, 16)
    assert np.bincount(rows).tolist() == [2] * size
    assert columns.min() > 0 and columns.max() < 15
    assert not np.isin(batch.target_ids, SPECIAL.all()).any()


@given(size=st.integers(1, 25))
def test_a_pass_reads_every_sample_once_whatever_the_batch(size: int) -> None:
    batches = make(masked_per_sequence=1)
    steps = -(-50 // size)
    rows = np.concatenate([batches.step(step, size).input_ids for step in range(steps)])[:50]
    reference = np.concatenate([batches.step(step, 1).input_ids for step in range(50)])
    assert (rows == reference).all()
    clean = {tuple(row[row != SPECIAL.mask]) for row in reference}
    assert len(clean) == 50


def test_masks_follow_80_10_10() -> None:
    batches = make(samples=4000)
    batch = batches.step(0, 4000)
    shown = batch.input_ids.ravel()[batch.target_positions]
    masked, kept = np.mean(shown == SPECIAL.mask), np.mean(shown == batch.target_ids)
    assert masked == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1, abs=0.02)
    random = shown[(shown != SPECIAL.mask) & (shown != batch.target_ids)]
    assert not np.isin(random, SPECIAL.all()).any() and len(np.unique(random)) > 100


def test_seeds_passes_and_static_masks() -> None:
    first, again = make().step(4, 10), make().step(4, 10)
    assert (first.input_ids == again.input_ids).all()
    assert (make(run_seed=4).step(4, 10).input_ids != first.input_ids).any()

    def masks_by_sample(batches: Batches, pass_index: int) -> dict[bytes, bytes]:
        found = {}
        for i in range(50):
            batch = batches.step(50 * pass_index + i, 1)
            clean = batch.input_ids.copy().ravel()
            clean[batch.target_positions] = batch.target_ids
            found[clean.tobytes()] = batch.target_positions.tobytes()
        return found

    dynamic, static = make(), make(static_masks=True)
    assert masks_by_sample(static, 0) == masks_by_sample(static, 1)
    one, two = masks_by_sample(dynamic, 0), masks_by_sample(dynamic, 1)
    assert one.keys() == two.keys() and one != two


def test_unique_tokens_limit_the_samples_alike_for_every_seed() -> None:
    seen = []
    for seed in (0, 1):
        batches = make(unique_tokens=16 * 20, run_seed=seed, masked_per_sequence=1)
        assert batches.num_samples == 20 and batches.unique_tokens == 320
        rows = set()
        for step in range(40):
            batch = batches.step(step, 1)
            clean = batch.input_ids.copy().ravel()
            clean[batch.target_positions] = batch.target_ids
            rows.add(clean.tobytes())
        seen.append(rows)
    assert seen[0] == seen[1] and len(seen[0]) == 20


@pytest.mark.parametrize("unique", [1, 10**9])
def test_too_little_text(unique: int) -> None:
    with pytest.raises(CallerError, match="word pieces, enough for 50"):
        make(unique_tokens=unique)


def test_keyed_uniform_is_uniform_and_pinned() -> None:
    values = keyed_uniform(1, 2, np.arange(100_000))
    assert np.histogram(values, bins=10, range=(0, 1))[0] == pytest.approx(10_000, rel=0.05)
    # Pinned: another value here means that old runs can no longer be resumed.
    assert float(keyed_uniform(1, 2, 3)) == pytest.approx(0.8886628327853662, abs=1e-15)
