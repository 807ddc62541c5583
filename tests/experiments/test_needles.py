"""What must be true of haystacks, their questions, and of the grid that is made of the answers."""

import collections
import itertools
import json
import re
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import vxl2_jax as vxl2
from experiments.studies import films, judging, needle_report, needles
from experiments.studies.__main__ import main
from experiments.synthetic import clips, haystacks, pictures, questions

DEPTHS = tuple(needles.DEPTHS)
COMMITTED = json.loads((Path(needles.__file__).parents[1] / "results" / "needles" / "grid.json").read_text())


@pytest.mark.parametrize("seconds", [16, 64, 100, 333, 2048])
def test_depths_are_shared_out_over_films_that_have_room_for_them(seconds):
    parts = haystacks.share_out(DEPTHS, seconds)
    assert sorted(itertools.chain(*parts)) == list(DEPTHS)
    for part in parts:
        starts = [haystacks.start_of(depth, seconds) for depth in part]
        assert all(b - a >= haystacks.NEEDLE_S + 2 for a, b in itertools.pairwise(starts))
    assert len(haystacks.share_out(DEPTHS, seconds, apart=True)) == len(DEPTHS)
    assert len(haystacks.share_out(DEPTHS, 2048)) == 1


@pytest.mark.parametrize("seconds, depths", [(16, (100.0,)), (64, (0.0, 50.0, 100.0)), (900, DEPTHS)])
def test_needles_are_shown_once_at_their_depth_among_other_pictures(seconds, depths):
    for seed in range(5):
        clip, found = haystacks.draw(np.random.default_rng(seed), seconds=seconds, depths=depths)
        spans = [(event.start_s, event.stop_s) for event in clip.events]
        assert (
            all(a[1] + 1.5 <= b[0] for a, b in itertools.pairwise(spans))
            and spans[0][0] >= 0
            and spans[-1][1] <= seconds
        )
        shown = collections.Counter(event.name for event in clip.events)
        for needle, depth in zip(found, depths, strict=True):
            assert shown[needle.name] == 1 and needle.absent not in shown and needle.depth == depth
            assert clip.at(needle.start_s).name == needle.name and needle.stop_s - needle.start_s == haystacks.NEEDLE_S
            assert needle.start_s == pytest.approx(depth / 100 * (seconds - haystacks.NEEDLE_S), abs=0.5)
        if seconds == 900:
            covered = sum(stop - start for start, stop in spans) / seconds
            assert 0.6 < covered < 0.85 and len(clip.scenes) == 30


def test_needles_without_room_are_refused():
    with pytest.raises(ValueError, match="no room"):
        haystacks.draw(np.random.default_rng(0), seconds=64, depths=(50.0, 60.0))


def test_questions_are_about_the_needle_and_nothing_else():
    clip, found = haystacks.draw(np.random.default_rng(1), seconds=300, depths=DEPTHS)
    for needle in found:
        asked = {one.kind: one.question for one in haystacks.ask(np.random.default_rng(2), needle)}
        assert tuple(asked) == haystacks.KINDS
        assert f" {needle.name}?" in asked["exists"].question and f" {needle.absent}?" in asked["absent"].question
        assert questions.is_right(asked["exists"], "yes") and questions.is_right(asked["absent"], "no")
        assert questions.is_right(asked["when"], f"at {needle.start_s:.0f} seconds")
        assert clip.at(int(re.search(r"\d+", asked["what"].question)[0])).name == needle.name
        assert questions.is_right(asked["what"], f"a {needle.name}")


def test_films_that_are_there_give_what_they_show_once():
    events = [
        {"name": name, "start_s": start, "stop_s": start + 8}
        for name, start in (("dog", 0.0), ("car", 20.0), ("dog", 40.0), ("cat", 92.0))
    ]
    found = haystacks.needles_of(np.random.default_rng(0), events, 100.0, (0.0, 20.0, 100.0))
    assert [(needle.name, needle.depth) for needle in found] == [("car", 20.0), ("cat", 100.0)]
    assert all(needle.absent not in ("dog", "car", "cat") and needle.absent in pictures.load()[0] for needle in found)


@pytest.mark.parametrize("once", [35, 59, 60])
def test_all_that_a_film_shows_once_is_asked_about_however_few_names_it_leaves(once):
    names = list(pictures.load()[0])
    events = [{"name": name, "start_s": 10.0 * i, "stop_s": 10.0 * i + 8} for i, name in enumerate(names[:once])]
    found = haystacks.needles_of(np.random.default_rng(0), events, 10.0 * once, DEPTHS)
    assert [needle.name for needle in found] == (names[:once] if once < len(names) else [])
    absent = collections.Counter(needle.absent for needle in found)
    assert set(absent) == set(names[once:]) and (not found or max(absent.values()) - min(absent.values()) <= 1)


def record(*needles, mode="dense", seconds=64):
    """A film of needles: (depth, right of "exists", "absent", "when", "what", and what differs for all of them)."""
    labels, judged, known = [], {"right": [], "held": [], "ranks": [], "chance": []}, []
    for depth, right, changed in needles:
        one = {"held": 1, "ranks": [1], "chance": 0.25, "sayable": True, "known": True} | changed
        labels += [[f"{depth} {kind}", "", ""] for kind in haystacks.KINDS]
        judged["right"] += right
        for name in ("held", "ranks", "chance"):
            judged[name] += [one[name]] * 4
        known += [(one["known"], one["sayable"])] * 4
    spent = {"render": 1.0, "watch": 2.0, "ask": 3.0}
    record = {"seconds": seconds, "asked": labels, "settings": {mode: judged}, "peak_bytes": 1, "spent_s": spent}
    return record | {"known": [one for one, _ in known], "sayable": [one for _, one in known]}


def test_the_grid_counts_trials_as_it_says():
    records = {
        "a": record((0.0, (1, 0, 1, 1), {}), (50.0, (1, 1, 0, 0), {"sayable": False})),
        "b": record(
            (50.0, (0, 1, 1, 1), {"held": 0, "ranks": [3]}),
            (0.0, (1, 1, 1, 1), {"ranks": [], "chance": 1.0}),
            mode="bilevel",
        ),
        "c": {"error": "c: gone"},
    }
    data = needle_report.summarise(records)
    cells = {(cell["depth"], mode): cell for mode, part in data["modes"].items() for cell in part["cells"]}
    # Yes to everything is no knowledge of what is there.
    assert (cells[0.0, "dense"]["right"], cells[0.0, "dense"]["trials"]) == (2, 3)
    assert (cells[50.0, "dense"]["trials"], cells[50.0, "dense"]["unsayable"]) == (0, 3)
    assert cells[50.0, "dense"]["accuracy"] is None and cells[50.0, "dense"]["questions"] == 3
    assert [cells[50.0, "bilevel"][name] for name in ("right", "dense", "by_lot")] == [2, 0, 25.0]
    assert cells[50.0, "bilevel"]["median_rank"] == 3 and cells[0.0, "bilevel"]["median_rank"] is None
    assert cells[0.0, "bilevel"]["by_lot"] == 100.0 and data["modes"]["bilevel"]["by_kind"]["exists"]["right"] == 1
    assert data["films"] == 2 and data["failures"] == [{"video": "c", "error": "c: gone"}]
    assert set(data) | {"settings", "made_with"} == set(COMMITTED)
    assert set(data["modes"]["dense"]["all"]) == set(COMMITTED["modes"]["dense"]["all"])
    text = needle_report.as_markdown(data)
    assert "| 50.0 % | 66.7 % (20.8 – 93.9) |" in text.replace("50 %", "50.0 %") and "c: gone" in text


def test_numbers_outside_the_vocabulary_are_noticed():
    class Words:
        def encode(self, text):
            return [word for word in text.rstrip("?").split() if word != "1500"]

        def decode(self, ids):
            return " ".join(ids)

    model = type("Model", (), {"tokenizer": Words()})
    assert needles.knows(model, "What appears at 40 seconds?") and not needles.knows(model, "at 1500 seconds")


class StandIn:
    """A model that says yes, with every other chunk dense; counts what it watches, one memory at a time."""

    name, fingerprint, config = "folder/stand-in", "0123", SimpleNamespace(visual_tokens=16)

    def __init__(self):
        self.watched, self.tokenizer, self.memories = 0, self, weakref.WeakSet()

    def encode(self, text):
        return text

    def decode(self, text):
        return text.rstrip("?")

    def watch(self, path, **options):
        assert path.stat().st_size and not self.memories, "two memories are resident at once"
        self.watched += 1
        memory = Memory(frames=64, layout=SimpleNamespace(length=100))
        self.memories.add(memory)
        return memory

    def ask(self, memory, texts, *, top_k, **options):
        chunks = tuple(vxl2.Chunk(8.0 * i, 8.0 * i + 8, 1.0, top_k is None or i % 2 == 0) for i in range(8))
        return [vxl2.Answer(text, "yes", (1,), True, chunks, 1, 1, {}) for text in texts]


@dataclass(frozen=True, eq=False)
class Memory:
    """What is asked of a memory."""

    frames: int
    layout: SimpleNamespace


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the study on films of 64 seconds with a stand-in; returns the report."""
    monkeypatch.setattr(films.encode, "render_mp4", lambda clip, path, rate: path.write_bytes(b"film"))

    def go(model, *arguments):
        monkeypatch.setattr(vxl2, "load", lambda name: model)
        given = [
            "needles",
            "--lengths=64",
            "--seeds=1",
            f"--records={tmp_path / 'records'}",
            f"--out={tmp_path / 'out'}",
        ]
        assert main([*given, *arguments]) == 0
        return json.loads((tmp_path / "out.json").read_text())

    return go


def test_a_run_resumes_and_is_extended(run, tmp_path):
    model, count = StandIn(), len(haystacks.share_out(DEPTHS, 64))
    first = run(model)
    assert model.watched == 2 * count
    assert first["modes"]["bilevel"]["by_kind"]["exists"]["right"] == 0  # always yes
    assert first["made_with"]["model"] == "stand-in" and set(first["settings"]) == set(COMMITTED["settings"])
    assert {path.name for path in tmp_path.glob("out*")} == {"out.json", "out.md", "out.png"}
    # Killed in the middle of a record: that film alone is done again, to the same report.
    (records,) = (tmp_path / "records").iterdir()
    records.write_text(records.read_text()[:-40])
    assert run(model)["modes"] == first["modes"] and model.watched == 2 * count + 2
    run(model, "--seeds=2")
    assert model.watched == 4 * count + 2


def test_a_film_that_cannot_be_watched_is_reported_and_tried_again(run, monkeypatch):
    def broken(self, path, **options):
        raise vxl2.VideoError("film.mp4: cannot be read")

    with monkeypatch.context() as now:
        now.setattr(StandIn, "watch", broken)
        data = run(StandIn(), "--modes=dense")
    assert data["films"] == 0 and len(data["failures"]) == len(haystacks.share_out(DEPTHS, 64)) and not data["modes"]
    data = run(StandIn(), "--modes=dense")
    assert not data["failures"] and list(data["modes"]) == ["dense"]


def test_a_compression_that_the_model_lacks_is_refused(run, tmp_path):
    with pytest.raises(vxl2.RequestError, match="compression must be from 1 to 16"):
        run(StandIn(), "--compression=17")
    assert not (tmp_path / "records").exists()


def test_existing_films_need_their_answers_and_names_of_their_own(tmp_path):
    film = tmp_path / "long.mp4"
    texts = (
        (None, "cannot be read"),
        ("[]", "no answers of"),
        ("{", "no answers of"),
        ('{"seconds": 90.0}', "no answers of"),
        ('{"seconds": 90.0, "events": []}', "shows nothing just once"),
    )
    for text, words in texts:
        if text is not None:
            film.with_suffix(".json").write_text(text)
        with pytest.raises(vxl2.RequestError, match=words):
            films.existing([film], DEPTHS)
    event = {"name": "dog", "start_s": 82.0, "stop_s": 90.0}
    film.with_suffix(".json").write_text(json.dumps({"seconds": 90.0, "events": [event]}))
    (found,) = films.existing([film], DEPTHS).values()
    assert found.seconds == 90 and [(one.name, one.depth) for one in found.needles] == [("dog", 100.0)]
    path, asked = films.prepare(found, tmp_path, footage="", rate=2)
    assert path == film and [one.kind for one in asked] == list(haystacks.KINDS)
    with pytest.raises(vxl2.RequestError, match="long.mp4: 2 films have this name"):
        films.existing([film, tmp_path / "other" / "long.mp4"], DEPTHS)
    with pytest.raises(vxl2.RequestError, match="too short"):
        films.drawn([15], 1, DEPTHS)


@pytest.mark.parametrize(
    "start, stop, dense, rank, found",
    [
        (28.0, 37.0, 2, 1, True),  # four seconds in the second chunk, five in the third
        (27.0, 36.0, 2, 1, True),  # five and four: the third shows it, too
        (27.0, 36.0, 1, 1, True),
        (27.0, 36.0, 3, 1, False),
        (24.0, 31.5, 2, 3, False),  # no frame of the third chunk
        (12.0, 20.0, 3, None, True),  # half in the first chunk, which is always dense
    ],
)
def test_a_needle_is_found_by_any_chunk_that_shows_it(start, stop, dense, rank, found):
    needle = haystacks.Needle(50.0, "dog", start, stop, "cat")
    chunks = tuple(
        vxl2.Chunk(16.0 * i, 16.0 * (i + 1), score, i in (0, dense, 4)) for i, score in enumerate((9, 1, 3, 2, 9))
    )
    question = haystacks.ask(np.random.default_rng(0), needle)[0].question
    answer = vxl2.Answer("", "yes", (1,), True, chunks, 1, 1, {})
    judged = judging.judge([judging.Asked("", question)], [answer], 4)
    assert (judged["right"], judged["held"]) == ([1], [int(found)]) and judged["ranks"] == [[rank] if rank else []]
    shown = len({second // 16 for second in range(int(start), int(np.ceil(stop)))})
    assert needles.chance(question, 4, 5, 1) == pytest.approx(shown / 3 if rank else 1.0)


@pytest.mark.parametrize("shown, top_k, chunks", [(1, 2, 6), (2, 2, 6), (3, 4, 6), (2, 9, 6), (1, 0, 6)])
def test_the_probability_at_random_is_the_share_of_draws(shown, top_k, chunks):
    drawn = list(itertools.combinations(range(chunks), min(top_k, chunks)))
    hits = sum(min(one, default=chunks) < shown for one in drawn)
    assert needles.at_random(shown, top_k, chunks) == pytest.approx(hits / len(drawn))


def test_a_film_is_made_the_same_again():
    drawn = [haystacks.draw(np.random.default_rng([1, 64, 0, 0]), seconds=64, depths=(0.0, 50.0)) for _ in range(2)]
    assert drawn[0] == drawn[1] and isinstance(drawn[0][0], clips.Clip)
