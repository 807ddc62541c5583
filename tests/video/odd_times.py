"""Films of odd timestamps, clocks and rates."""

import functools
from fractions import Fraction
from pathlib import Path

from films import TS_CLOCK, TS_WRAP, Pictures, even, film_bytes, restamp
from oddities import DAY, ORDERED, PLAIN, add, case, film, put, restamped, ten, ts

from vxl2_jax.video import sample_indices


def with_outlier(place: int, late_s: float) -> list[int]:
    times = even(30, 10)
    times[place] += round(late_s * 1000)
    return times


for where, place in {"first": 0, "middle": 13, "last": 29}.items():
    for suffix in ("mkv", "flv"):
        film(f"outlier_{where}_{suffix}", suffix, Pictures(with_outlier(place, DAY), options=PLAIN), notes=None)
    restamped(f"outlier_{where}_ts", lambda n, t, at=place: t + 20 * 3600 * TS_CLOCK * (n == at), notes=None)
film("outlier_middle_mp4", "mp4", Pictures(with_outlier(13, 3 * 3600), options=PLAIN), notes=None)
film("outlier_last_mp4", "mp4", Pictures(with_outlier(29, 3 * 3600), options=PLAIN), notes=None)
film("outlier_last_day_mp4", "mp4", Pictures(with_outlier(29, DAY), options=PLAIN), notes=None)
film(
    "outlier_among_b_frames", "mkv", Pictures(with_outlier(13, DAY), options=ORDERED), notes=None
)  # not at an instant that is read
LIMITED = sample_indices(30, 10.0, fps=0.5, max_frames=10)
film(
    "outlier_with_a_limit", "mkv", Pictures(with_outlier(13, DAY), options=PLAIN), shown=LIMITED, fps=0.5,
    seconds=LIMITED / 10, limit=10, notes=None,
)  # fmt: skip


# Two timestamps that are wrong by the same time.
for late_s in (-72_000, -30, -5, 5, 72_000):
    restamped(
        f"two_outliers_{late_s}_s", lambda n, t, s=late_s: t + (20 * 3600 + s * (n in (13, 14))) * TS_CLOCK, notes=True
    )
film("held_after_three", "mkv", Pictures([0, 100, 200, *even(30, 10, start=20)], options=PLAIN), notes=None,
     shown=[0, *[2] * 19, 3, 13, 23])  # fmt: skip
# One stamp of an hour before the others.
restamped("outlier_early_ts", lambda n, t: t + (1 if n == 13 else 2) * 3600 * TS_CLOCK, notes=None)
restamped("every_second_stamp_missing", lambda n, t: None if n % 2 else t)
restamped("all_stamps_but_the_first_missing", lambda n, t: None if n else t, notes=None)


def joined(folder: Path, shift_s: float, options: dict) -> Path:
    """Two recordings of 2 s, of which the second begins `shift_s` after the first."""
    shift = round(shift_s * TS_CLOCK)
    base = 100 * TS_CLOCK
    first, second = (ts(folder, count=20, first=first, options=options) for first in (0, 100))
    return put(folder, "ts", restamp(first, lambda n, t: t + base) + restamp(second, lambda n, t: t + base + shift))


for name, shift_s in {"back_30_s": -30, "same_clock": 0, "an_hour_later": 3600, "back_1_s": -1}.items():
    for kind, options in {"": PLAIN, "_b_frames": ORDERED}.items():
        make = functools.partial(joined, shift_s=shift_s, options=options)
        add(f"joined_{name}{kind}", make, [0, 10, 100, 110], notes=True)


@case([0, 10, 100, 110, 200, 210], notes=True)
def three_joined(folder: Path) -> Path:
    return put(folder, "ts", b"".join(ts(folder, count=20, first=first) for first in (0, 100, 200)))


@case([*range(0, 20, 5), *range(100, 120, 5)], fps=5, notes=True)
def joined_program_streams(folder: Path) -> Path:
    parts = (
        film_bytes(Pictures(even(20, 25), range(first, first + 20), rate=25, codec="mpeg2video"), folder=folder, suffix="mpg")
        for first in (0, 100)
    )  # fmt: skip
    return put(folder, "mpg", b"".join(parts))


restamped("clock_wraps_after_one_second", lambda n, t: t + TS_WRAP - TS_CLOCK)
restamped("clock_wraps_after_one_second_b_frames", lambda n, t: t + TS_WRAP - TS_CLOCK, stream={"options": ORDERED})


@case(range(0, 100, 10), fps=0.1)
def clock_wraps_after_80_seconds(folder: Path) -> Path:
    data = film_bytes(Pictures(even(100, 1), rate=1, options=PLAIN), folder=folder)
    return put(folder, "ts", restamp(data, lambda n, t: t + TS_WRAP - 80 * TS_CLOCK))


restamped(
    "gap_of_5_s_in_ts", lambda n, t: t + 5 * TS_CLOCK * (n >= 10), [0, 9, 9, 9, 9, 9, 10], stream={"count": 20}, notes=None
)  # fmt: skip
GAP = [*even(10, 10), *even(10, 10, start=20.5)]
for suffix in ("mp4", "mkv", "mov", "nut"):
    film(f"gap_of_20_s_in_{suffix}", suffix, Pictures(GAP, options=PLAIN), shown=[0, *[9] * 20, 15], notes=None)
film(
    "gap_of_an_hour", "mkv", Pictures([*even(10, 10), *even(10, 10, start=3600.5)], options=PLAIN),
    shown=[0, *[9] * 36], fps=0.01, notes=None,
)  # fmt: skip
film(
    "gap_in_avi",
    "avi",
    Pictures([*range(10), *range(30, 40)], ticks=10, options=PLAIN),
    shown=[0, 9, 9, 10],
    notes=None,
)
film("negative_start_mkv", "mkv", ten(start=-0.6), written={"options": {"avoid_negative_ts": "disabled"}})
film("edit_list_cuts_the_beginning", "mp4", ten(start=-0.6), shown=[6, 16, 26])
film("edit_list_cuts_the_beginning_b_frames", "mp4", ten(start=-0.6, options=ORDERED), shown=[6, 16, 26])
film("late_start_mp4", "mp4", ten(start=3))
film("late_start_mkv", "mkv", ten(start=3))
film("late_start_ts", "ts", ten(start=3, options=ORDERED))
film(
    "pairs_of_equal_times", "mkv", Pictures([200 * (i // 2) for i in range(18)], options=PLAIN), shown=[1, 11],
    notes=None,
)  # fmt: skip
film("all_times_equal", "mkv", Pictures([0] * 30, options=PLAIN), notes=None)
film("shaking_clock", "mkv", Pictures([t - 20 * (i % 3) for i, t in enumerate(even(30, 10))], options=PLAIN))

# Clocks and rates: of a constant rate every round(rate / fps)-th picture is read.

NTSC = Fraction(1001, 1000)
RATES = {"film": 24 / NTSC, "pal": Fraction(25), "ntsc": 30 / NTSC, "double": 60 / NTSC, "fast": Fraction(120)}
for name, rate in RATES.items():
    for suffix, ticks in {"mkv": 1000, "ts": TS_CLOCK, "mp4": 1_000_000}.items():
        chosen = range(0, round(float(rate)), round(float(rate) / 4))
        film(
            f"rate_{name}_{suffix}", suffix,
            Pictures(even(round(float(rate)), rate, ticks), ticks=ticks, rate=rate, options=ORDERED), shown=chosen, fps=4,
            seconds=[float(number / rate) for number in chosen],
        )  # fmt: skip
film("one_tick_per_picture", "mp4", Pictures(even(30, 10, 10), ticks=10, options=ORDERED))
film("one_per_second", "mp4", Pictures(even(5, 1), rate=1), shown=range(5))
film("one_every_five_seconds", "mp4", Pictures(even(3, 0.2), rate=Fraction(1, 5)), shown=[0] * 5 + [1] * 5 + [2] * 5)
film("slides_of_two_seconds", "mp4", Pictures(even(4, 0.5), rate=Fraction(1, 2)), shown=[0, 0, 1, 1, 2, 2, 3, 3])
film("slides_of_two_seconds_mkv", "mkv", Pictures(even(4, 0.5), rate=Fraction(1, 2)), shown=[0, 0, 1, 1, 2, 2, 3, 3])
film("asked_for_more_than_there_is", "mp4", Pictures(even(3, 1), rate=1), fps=4, shown=[0] * 4 + [1] * 4 + [2] * 4)
film(
    "nearly_as_slow_as_asked",
    "mp4",
    Pictures(even(4, 3), rate=3),
    fps=4,
    shown=range(4),
    seconds=[i / 3 for i in range(4)],
)
UNEVEN = [0, 100, 900, 1600, 1700, 3100, 3200, 4050]
for suffix in ("mp4", "mkv"):
    film(f"uneven_{suffix}", suffix, Pictures(UNEVEN, options=ORDERED), shown=[0, 2, 4, 4, 6], notes=None)
film("uneven_ts", "ts", Pictures(UNEVEN, options=PLAIN), shown=[0, 2, 4, 4, 6], notes=None)
HELD = [*even(10, 5), *even(9, 5, start=600)]
for suffix in ("mp4", "mkv"):
    film(f"held_{suffix}", suffix, Pictures(HELD, rate=5), shown=[0, 5, *[9] * 598, 10, 15], notes=None)
    film(f"held_asked_rarely_{suffix}", suffix, Pictures(HELD, rate=5), fps=0.01, shown=[0, *[9] * 5, 10], notes=None)
film("a_single_picture", "mp4", Pictures([0], [77]), shown=[77])
film(
    "slides_with_b_frames", "mkv", Pictures([0, 5000, 10000, 15000, 20000, 20100], rate=Fraction(1, 5), options=ORDERED),
    fps=0.2, shown=range(6),
)  # fmt: skip
