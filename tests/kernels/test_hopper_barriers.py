"""The barriers of the Hopper kernel, in every order in which its warpgroups and copies may run.

`warpgroups` is the protocol in the docstring of `hopper._program`, as lists of actions; change both together. A barrier
completes when all its arrivals are there, and has a parity only: a warpgroup must never be two completions behind.
"""

import itertools

import pytest

WAIT, ARRIVE, COPY = "wait", "arrive", "copy"
PING_PONG = ("ping_pong", 0)


def warpgroups(tasks, stages, consumers):
    """The actions of the producer and of each consumer of a program; tasks: the steps of each."""
    total = sum(tasks)
    producer = []
    for step in range(total):
        for tile in "kv":
            if step >= stages:
                producer.append((WAIT, (f"{tile}_free", step % stages)))
            producer.append((COPY, (f"{tile}_ready", step % stages)))
    for step in range(max(total - stages, 0), total):
        producer += [(WAIT, ("k_free", step % stages)), (WAIT, ("v_free", step % stages))]
    return [producer, *(consumer(tasks, stages, number, consumers) for number in range(consumers))]


def consumer(tasks, stages, number, consumers):
    """The actions of one consumer; q_ready is its own, so that it says nothing about the others."""
    meet = [(ARRIVE, PING_PONG), (WAIT, PING_PONG)] if consumers == 2 else []
    actions, first = [], 0
    for steps in filter(None, tasks):
        last = first + steps - 1
        actions += [(WAIT, ("k_ready", first % stages)), *(meet if number == 1 else []), *meet]
        if steps > 1:
            actions.append((ARRIVE, ("k_free", first % stages)))
        for step in range(first, last + 1):
            following = min(step + 1, last) % stages
            actions += [*meet[:1], (WAIT, ("v_ready", step % stages))]
            if step < last:
                actions.append((WAIT, ("k_ready", following)))
            actions += [*meet[1:], *meet, (ARRIVE, ("v_free", step % stages))]
            if step + 1 != last:
                actions.append((ARRIVE, ("k_free", following)))
        actions += meet if number == 0 else []
        first += steps
    return actions


def fault(groups):
    """What goes wrong in some order of the actions, or None. A copy arrives at its barrier at any time after it began."""
    barriers = sorted({barrier for group in groups for _, barrier in group})
    arrivals = {b: 1 if b[0].endswith("_ready") else len(groups) - 1 for b in barriers}

    def counts(kind, group):
        """Of each barrier, how often `group` has done `kind` before each of its actions."""
        return {b: list(itertools.accumulate((action == (kind, b) for action in group), initial=0)) for b in barriers}

    arrived, waited, copied = ([counts(kind, group) for group in groups] for kind in (ARRIVE, WAIT, COPY))
    waiters = {b: [n for n, of in enumerate(waited) if of[b][-1]] for b in barriers}
    start = (tuple(0 for _ in groups), frozenset())
    seen, left = {start}, [start]
    while left:
        at, in_flight = left.pop()

        def completed(barrier, at=at, in_flight=in_flight):
            ended = sum(of[barrier][place] for of, place in zip(copied, at, strict=True)) - (barrier in in_flight)
            return (ended + sum(of[barrier][place] for of, place in zip(arrived, at, strict=True))) // arrivals[barrier]

        following = [(at, in_flight - {barrier}) for barrier in in_flight]
        for number, (group, place) in enumerate(zip(groups, at, strict=True)):
            if place == len(group):
                continue
            kind, barrier = group[place]
            if kind == COPY and barrier in in_flight:
                return f"two copies at once to {barrier}"
            if kind == WAIT and completed(barrier) <= waited[number][barrier][place]:
                continue
            moved = (*at[:number], place + 1, *at[number + 1 :])
            following.append((moved, in_flight | {barrier} if kind == COPY else in_flight))
        for barrier in barriers:
            if any(completed(barrier) - waited[n][barrier][at[n]] > 1 for n in waiters[barrier]):
                return f"{barrier} is two completions ahead"
        if not following and any(place < len(group) for place, group in zip(at, groups, strict=True)):
            return f"deadlock at {at}"
        left += set(following) - seen
        seen.update(following)
    return None


TASKS = [(), (0,), (1,), (3,), (0, 2), (1, 1), (1, 0, 2), (2, 3)]


@pytest.mark.parametrize("consumers", [1, 2])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_no_order_of_the_actions_hangs_or_overtakes(stages, consumers):
    for tasks in TASKS:
        assert fault(warpgroups(tasks, stages, consumers)) is None, tasks


@pytest.mark.parametrize("consumers", [1, 2])
def test_actions_left_out_are_noticed(consumers):
    """Every arrival of a consumer, and every wait of the producer before it copies, is needed."""
    groups = warpgroups((1, 3), 2, consumers)
    for number, group in enumerate(groups):
        for place, (kind, barrier) in enumerate(group):
            changed = [*groups[:number], group[:place] + group[place + 1 :], *groups[number + 1 :]]
            copies_later = any(later == COPY for later, _ in group[place:])
            if kind == ARRIVE or (number == 0 and kind == WAIT and copies_later):
                assert fault(changed), (number, place, kind, barrier)
