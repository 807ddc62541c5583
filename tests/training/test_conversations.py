"""Conversations in all supported formats."""

import json
import re

import pytest

from vxl2_jax.errors import RequestError
from vxl2_jax.training import conversations

TURNS = (("Is there a dog?", "yes"), ("Where?", "left"))
LLAVA = {
    "video": "a.mp4",
    "conversations": [
        {"from": "human", "value": "<video>\nIs there a dog?"},
        {"from": "gpt", "value": "yes"},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "left"},
    ],
}
CHAT = {
    "id": 7,
    "video": "a.mp4",
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Is there a dog?<image>"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "left"},
    ],
}
PARTS = {
    "messages": [
        {"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Is there a dog?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "left"},
    ]
}


@pytest.mark.parametrize("entry", [LLAVA, CHAT, PARTS], ids=["conversations", "messages", "parts"])
@pytest.mark.parametrize("listed", [False, True])
def test_all_forms_are_equivalent(tmp_path, entry, listed):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([entry], indent=1) if listed else f"\n{json.dumps(entry)}\n")
    ((found,), _) = conversations.read([path])
    assert found == conversations.Conversation("a.mp4", tmp_path / "a.mp4", TURNS)


def test_plain_questions_and_a_folder_of_videos(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(
        json.dumps({"video": "b/c.mp4", "question": "What?", "answer": "line\u2028separator"}, ensure_ascii=False)
        + "\n"
    )
    ((found,), _) = conversations.read([path], "/videos")
    assert str(found.video) == "/videos/b/c.mp4" and found.turns == (("What?", "line\u2028separator"),)


def test_files_follow_each_other(tmp_path):
    for name in "xy":
        (tmp_path / name).write_text(json.dumps({"video": name, "question": "q", "answer": "a"}))
    assert [found.name for found in conversations.read([tmp_path / "y", tmp_path / "x"])[0]] == ["y", "x"]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"question": "q", "answer": "a"}, "names no video"),
        ({"video": ["a", "b"], "question": "q", "answer": "a"}, "one video"),
        ({"video": "a"}, "neither conversations, nor messages"),
        ({"video": "a", "question": "q", "answer": ""}, "has an empty question or answer"),
        ({"video": "a", "question": "<video>", "answer": "a"}, "has an empty question or answer"),
        ({"video": "a", "question": "q", "answer": 3}, "not text"),
        ({"video": "a", "messages": "hello"}, "messages must be a list"),
        ({"video": "a", "messages": []}, "must alternate"),
        ({"video": "a", "messages": CHAT["messages"][1:2]}, "must alternate"),
        ({"video": "a", "messages": CHAT["messages"][2:4]}, "must alternate"),
        ({"video": "a", "messages": [{"role": "system", "content": "Be rude."}]}, "has a system message"),
        ({"video": "a", "messages": [{"role": "tool", "content": "x"}]}, 'a message must have "role"'),
        (["a"], "not an object"),
        ({"video": "a", "messages": [{"role": [], "content": "x"}]}, 'a message must have "role"'),
        ({"videos": ["a", "b"], "question": "q", "answer": "a"}, "one video"),
        ({"video": [["a"]], "question": "q", "answer": "a"}, "one video"),
        ({"video": "a", "start": 3.0, "end": 6.0, "question": "q", "answer": "a"}, "'start': cut the clip out"),
        ({"video": "a", "system_prompt": "Be brief", "question": "q", "answer": "a"}, "'system_prompt': .* is fixed"),
        (
            {"messages": [{"role": "user", "content": [{"video": "a", "video_end": 3}]}]},
            "'video_end': cut the clip out",
        ),
        ({"messages": [{"role": "user", "content": [{"video": "a"}, {"video": "b"}]}]}, "one video"),
    ],
)
def test_an_invalid_entry_is_reported_with_its_line(tmp_path, entry, expected):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(CHAT) + "\n\n" + json.dumps(entry) + "\n")
    (kept,), (problem,) = conversations.read([path])
    assert kept.turns == TURNS and re.match(f"{path}, line 3: .*{expected}", problem) and "\n" not in problem
    path.write_text(json.dumps([entry]))
    with pytest.raises(RequestError, match=expected):
        conversations.read([path])


@pytest.mark.parametrize(("text", "expected"), [("", "no conversation"), ("[3", "not JSON"), ("{", "line 1: not JSON")])
def test_an_invalid_file_is_named(tmp_path, text, expected):
    path = tmp_path / "train.jsonl"
    path.write_text(text)
    with pytest.raises(RequestError, match=expected):
        conversations.read([path])
    with pytest.raises(RequestError, match="absent: no such file"):
        conversations.read([tmp_path / "absent"])


def test_answers_are_learnt_to_the_letter(tmp_path):
    answer = " Use <video> tags: <video></video> and <image>\n"
    form = {"conversations": [{"from": "human", "value": "<video>Write HTML"}, {"from": "gpt", "value": answer}]}
    path = tmp_path / "train.json"
    for video in ({"videos": ["a.mp4"]}, {"video": ["a.mp4"]}, {"image": "a.mp4", "system_prompt": ""}):
        path.write_text("\ufeff" + json.dumps([{**form, **video}]), encoding="utf-8")
        assert conversations.read([path]) == (
            [conversations.Conversation("a.mp4", tmp_path / "a.mp4", (("Write HTML", answer),))],
            [],
        )
