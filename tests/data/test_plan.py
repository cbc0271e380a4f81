"""The plan: every row once an epoch, the same from any point on, mixed, weighted."""

from collections import Counter

import numpy as np
import pytest

from clap_hf.data.plan import Plan, RowGroup

ROWS = [40, 13, 100, 7, 64, 31, 50, 50, 22, 90]
GROUPS = [RowGroup(0, i // 3, i % 3, rows) for i, rows in enumerate(ROWS)]
OTHERS = [RowGroup(1, 0, i, 30) for i in range(4)]


def rows_of(plan, epoch, lane, first_step=0):
    """(source, file, group, row, copy) of what a lane gives, in order."""
    found = []
    for block in plan.blocks(plan.segments(epoch), epoch, lane, first_step):
        rows = [
            (s.group.source, s.group.file, s.group.index, row, s.copy)
            for s in block.segments
            for row in range(s.first, s.last)
        ]
        found += [rows[i] for i in block.order[block.taken :]]
    return found


def whole_epoch(plan, epoch):
    return [row for lane in range(plan.lanes) for row in rows_of(plan, epoch, lane)]


def test_an_epoch_is_every_row_once_but_for_a_tail_shorter_than_the_lanes():
    plan = Plan(GROUPS, [1.0], batch_size=24, seed=1, lanes=8)
    rows = whole_epoch(plan, 0)
    assert len(rows) == len(set(rows)) > sum(ROWS) - plan.lanes
    assert plan.steps_per_epoch == sum(ROWS) // 24
    # What an epoch leaves out, another has.
    assert len(set(rows).union(*(whole_epoch(plan, epoch) for epoch in range(1, 6)))) == sum(ROWS)


def test_order_is_a_function_of_seed_and_epoch():
    plan = Plan(GROUPS, [1.0], batch_size=24, seed=1, lanes=8)
    assert whole_epoch(plan, 3) == whole_epoch(Plan(GROUPS, [1.0], batch_size=24, seed=1, lanes=8), 3)
    assert whole_epoch(plan, 3) != whole_epoch(plan, 4)
    assert whole_epoch(plan, 3) != whole_epoch(Plan(GROUPS, [1.0], batch_size=24, seed=2, lanes=8), 3)


@pytest.mark.parametrize("first_step", range(0, 19, 3))
def test_a_lane_goes_on_from_any_step(first_step):
    plan = Plan(GROUPS, [1.0], batch_size=24, seed=1, lanes=8)
    for lane in range(plan.lanes):
        assert rows_of(plan, 2, lane, first_step) == rows_of(plan, 2, lane)[first_step * plan.per_lane :]


def test_batches_mix_row_groups():
    groups = [RowGroup(0, 0, i, 100) for i in range(200)]
    plan = Plan(groups, [1.0], batch_size=64, seed=1)
    lanes = [rows_of(plan, 0, lane) for lane in range(plan.lanes)]
    for step in range(5):
        batch = [row for lane in lanes for row in lane[step * plan.per_lane : (step + 1) * plan.per_lane]]
        assert len({row[2] for row in batch}) > 45  # of 64 rows
    rows = np.array([row[2] * 100 + row[3] for row in lanes[0]])
    assert abs(np.corrcoef(rows[:200], np.arange(200))[0, 1]) < 0.2


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 120), (2.0, 240), (0.25, 30), (1.5, 180)])
def test_weights_say_how_often_a_source_is_seen(weight, expected):
    plan = Plan(GROUPS + OTHERS, [1.0, weight], batch_size=4, seed=1, lanes=1)
    rows = [row for row in whole_epoch(plan, 0) if row[0] == 1]
    assert len(rows) == len(set(rows)) == expected
    times = Counter(row[:4] for row in rows)
    assert max(times.values()) - min(times.values()) <= 1
    assert {row[4] for row in rows} == set(range(max(times.values())))  # repeats differ by their copy


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="lanes is 5, expected a divisor of batch_size=24"):
        Plan(GROUPS, [1.0], 24, 0, lanes=5)
    with pytest.raises(ValueError, match="467 rows, expected at least a batch of 1000"):
        Plan(GROUPS, [1.0], 1000, 0)
    with pytest.raises(ValueError, match="above 0"):
        Plan(GROUPS, [0.0], 24, 0)
