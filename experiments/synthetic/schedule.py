"""When the pictures of a clip are on screen, and which: random spans and names."""

from collections.abc import Sequence

import numpy as np

SHORTEST = 8.0  # least seconds that a picture stays: two groups of four sampled frames
LONGEST = 16.0
GAP = 1.5  # least seconds between two pictures
REPEAT = 0.5  # probability, per 64 s, that a name is shown again


def draw_spans(rng: np.random.Generator, seconds: int) -> list[tuple[float, float]]:
    """(start, stop) of each picture in seconds, multiples of a tenth."""
    shown = max(rng.uniform(0.6, 0.75) * seconds, SHORTEST)
    fewest, most = int(np.ceil(shown / LONGEST)), int(shown // SHORTEST)
    count = int(max(rng.integers(fewest, most + 1, size=2)))  # favours many short ones: more to ask about
    # Distribute the time beyond the least lengths; move towards equal shares if one picture would stay too long.
    extra = shown - count * SHORTEST
    share = extra * rng.dirichlet(np.ones(count))
    room, equal = LONGEST - SHORTEST, extra / count
    if share.max() > room:
        share = equal + (share - equal) * (room - equal) / (share.max() - equal)
    gaps = rng.dirichlet(np.ones(count + 1))
    if rng.random() < 0.2:
        gaps[0] = 0  # the clip begins with a picture
    gaps *= (seconds - shown - (count - 1) * GAP) / max(gaps.sum(), 1e-9)
    gaps[1:-1] += GAP
    spans, clock = [], 0
    for gap, length in zip(gaps, SHORTEST + share, strict=False):
        start = clock + int(10 * gap + 1e-6)
        clock = start + int(10 * length + 1e-6)
        spans.append((start / 10, clock / 10))
    return spans


def draw_names(rng: np.random.Generator, count: int, seconds: int, names: Sequence[str]) -> list[str]:
    """A name per picture in order of time, never the same twice in a row."""
    places = list(range(count))
    again: list[list[int]] = []
    for _ in range(rng.binomial(-(-seconds // 64), REPEAT)):
        wanted = 3 if rng.random() < 0.6 else 2
        chosen = _apart(rng, places, wanted) or _apart(rng, places, 2)
        if chosen and count >= 3:  # with two events, a repeat would leave nothing to compare
            again.append(chosen)
            places = [place for place in places if place not in chosen]
    rounds = -(-count // len(names))
    drawn = [names[i] for _ in range(rounds) for i in rng.permutation(len(names))][:count]
    for chosen in again:
        for place in chosen[1:]:
            drawn[place] = drawn[chosen[0]]
    return drawn


def _apart(rng: np.random.Generator, places: Sequence[int], count: int) -> list[int]:
    """`count` of the places in order, no two adjacent; [] if a few attempts find none."""
    for _ in range(8):
        if len(places) >= count:
            found = sorted(int(i) for i in rng.choice(places, count, replace=False))
            if min(np.diff(found)) > 1:
                return found
    return []
