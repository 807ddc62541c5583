"""Which device holds and reads what of a sharded video, against plain counting."""

import numpy as np
import pytest

from vxl2_jax import sequence_parallel, tensor_parallel
from vxl2_jax.errors import RequestError
from vxl2_jax.layout import GLOBAL, VISUAL, Layout, PrefillRule, key_ranges
from vxl2_jax.placement import Placement, Readers, resumed

COMPRESSION = 2
CASES = [  # groups, devices, stride, the group at which an extension began
    (37, 2, 4, 0),
    (37, 4, 4, 0),
    (5, 3, 4, 0),
    (41, 3, 6, 14),
    (50, 4, 6, 4),
    (24, 2, 4, 24),
]


def video(groups, seed=0):
    """A layout with timestamps of uneven lengths."""
    lengths = np.random.default_rng(seed).integers(1, 6, groups)
    return Layout(3, tuple(int(n) for n in lengths), 5)


def placed(case):
    groups, devices, stride, first = case
    return resumed(video(groups), devices, stride, first), first


def sets(starts, ends):
    return [set(range(a, b)) for a, b in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_every_group_has_one_device_and_neighbours_follow_each_other(case):
    placement, first = placed(case)
    owner = placement.owner
    borders = np.flatnonzero(np.diff(placement.piece(np.arange(len(owner))))) + 1
    assert all((border - placement.lead) % placement.stride == 0 for border in borders)
    assert all((owner[b] - owner[b - 1]) % placement.devices == 1 % placement.devices for b in borders)
    assert first == 0 or first >= len(owner) or first in borders
    whole = placement.pieces(0, len(owner))
    assert [g for begin, end in whole for g in range(begin, end)] == list(range(len(owner)))
    assert all(len(set(owner[begin:end])) == 1 for begin, end in whole)


@pytest.mark.parametrize("case", CASES)
def test_devices_hold_each_slot_of_the_sparse_level_once_and_in_order(case):
    placement, _ = placed(case)
    layout, local = placement.layout, placement.sparse(COMPRESSION)
    rows = [placement.sparse_rows(COMPRESSION, device) for device in range(placement.devices)]
    assert sorted(np.concatenate(rows)) == list(range(layout.sparse_length(COMPRESSION)))
    assert placement.most_sparse(COMPRESSION) == max(map(len, rows))
    slots = np.arange(layout.sparse_length(COMPRESSION) + 1)
    for device, held in enumerate(rows):
        np.testing.assert_array_equal(local(slots, device), [(held < slot).sum() for slot in slots])


@pytest.mark.parametrize("case", CASES)
def test_the_devices_read_every_key_of_a_range_once(case):
    placement, _ = placed(case)
    layout, length = placement.layout, placement.layout.global_length
    readers = Readers(placement.devices, (placement.visual, placement.share(length), placement.sparse(COMPRESSION)))
    ends = np.asarray([layout.visual_length, length, layout.sparse_length(COMPRESSION)])
    bounds = np.sort(np.random.default_rng(1).integers(0, ends[:, None, None] + 1, (3, 40, 2)), axis=-1)
    read = sum(readers.local(bounds[..., 1], d) - readers.local(bounds[..., 0], d) for d in range(placement.devices))
    np.testing.assert_array_equal(read, bounds[..., 1] - bounds[..., 0])


@pytest.mark.parametrize(("block_size", "prev_blocks"), [(2, 1), (1, 2), (3, 1), (2, 0)])
@pytest.mark.parametrize("case", CASES)
def test_calls_read_what_the_rule_allows(case, block_size, prev_blocks):
    placement, first = placed(case)
    rule, layout = PrefillRule(block_size, prev_blocks), placement.layout
    try:
        halo = sequence_parallel.halo_groups(rule, placement) * layout.visual
    except RequestError:
        assert prev_blocks * block_size + block_size - 1 > placement.stride
        return
    sizes = sequence_parallel.shape_for(placement, first)
    ids = np.arange(layout.global_length)
    calls = sequence_parallel.plan_strides(placement, rule, ids, sizes, first)
    held = [layout.visual_rows(placement.groups(device)) for device in range(placement.devices)]
    seen = {VISUAL: {}, GLOBAL: {}}
    for call in calls:
        gathered = []
        for device in range(placement.devices):
            own = type(call.own.arrays)(*(a[device] for a in call.own.arrays))
            visual = held[device]
            count = placement.stride * layout.visual
            begin = visual[own.visual_offset] if own.visual_offset < len(visual) else layout.visual_length
            near, around = (sets(*own.visual_ranges[:, stream]) for stream in (VISUAL, GLOBAL))
            before = sets(*own.halo_ranges[:, 0])
            assert own.visual_offset + count <= sizes.visual and own.halo_ranges.shape[2] == min(halo, count)
            for row in range(min(count, layout.visual_length - begin)):
                keys = {int(visual[k]) for k in near[row]}
                keys |= {int(begin) - halo + k for k in (before[row] if row < len(before) else ())}
                seen[VISUAL][int(begin) + row] = keys, around[row]
            gathered.append((own, sets(*own.global_ranges[:, 0]), visual))
        rows = len(gathered[0][0].ids)
        real = int(sum((np.diff(g[0].global_ranges[:, 0], axis=0) > 0).sum() for g in gathered))
        for place, row in enumerate(call.order[:real]):
            device, number = divmod(int(row), rows)
            own, globals_, _ = gathered[device]
            index = int(call.global_offset) + place
            assert own.ids[number] == index and own.positions[count + number] == layout.global_positions()[index]
            keys = {int(visual[k]) for other, _, visual in gathered for k in range(*other.gathered_ranges[:, 0, row])}
            seen[GLOBAL][index] = keys, globals_[number]
    for stream, length, origin in (
        (VISUAL, layout.visual_length, first * layout.visual),
        (GLOBAL, layout.global_length, layout.global_range(first, layout.groups)[0] if first < layout.groups else None),
    ):
        if origin is None or origin >= length:
            continue
        starts, ends = key_ranges(layout, rule, stream, 0, length)
        for query in range(origin, length):
            expected = tuple(set(range(starts[s, query], ends[s, query])) for s in (VISUAL, GLOBAL))
            assert seen[stream][query] == expected, (stream, query)


def test_what_lies_further_back_than_a_stride_is_refused():
    with pytest.raises(RequestError, match="sequence=2: a group attends to 12 groups"):
        sequence_parallel.halo_groups(PrefillRule(4, 3), Placement(video(30), 2, 8))
    with pytest.raises(RequestError, match="all groups"):
        sequence_parallel.halo_groups(PrefillRule(4, None), Placement(video(30), 2, 8))
    # A video of one stride has nothing further back.
    assert sequence_parallel.halo_groups(PrefillRule(4, None), Placement(video(8), 2, 8)) <= 8


@pytest.mark.parametrize(
    ("text", "shape"),
    [(None, (1, 1)), ("model=4", (4, 1)), ("sequence=8", (1, 8)), ("sequence = 2 , model=4", (4, 2))],
)
def test_a_mesh_is_read(text, shape):
    mesh = tensor_parallel.parse(text)
    assert (mesh.model, mesh.sequence) == shape and mesh.devices == shape[0] * shape[1]
    assert tensor_parallel.parse(str(mesh)) == mesh
