"""score_responses and show_prompts: one JSON value on stdout, or one line on stderr and exit code 2."""

import json
import os
import subprocess
import sys

import pytest

DOC = {
    "videoID": "k1tch3n",
    "duration": "medium",
    "domain": "Sports",
    "answer": "C",
    "sub_category": "Rowing",
    "task_type": "Counting",
    "question": "How many boats pass?",
    "options": ["A. Two.", "B. Three.", "C. Four.", "D. Five."],
}


@pytest.fixture
def responses(tmp_path) -> str:
    """A flag that names a file of responses: one has a prefix that the original does not remove."""
    rows = [
        {"response": "Best option: C", "answer": "C", "task_type": "Counting"},
        {"response": "four", "answer": "B", "task_type": "Counting"},
        {"benchmark": "mlvu", "response": "A", "answer": "A"},
    ]
    (tmp_path / "responses.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"--responses={tmp_path / 'responses.jsonl'}"


def test_responses_are_scored_as_the_original_does_without_starting_jax(responses):
    command = [sys.executable, "-m", "experiments.score_responses", "--benchmark=video_mme", responses]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "no_such_one"})
    none = {"correct": 0, "total": 2, "accuracy": 0.0}
    assert ended.returncode == 0 and json.loads(ended.stdout) == {**none, "by": {"task_type": {"Counting": none}}}
    left_out, unnamed = ended.stderr.splitlines()
    assert "1 rows of other benchmarks" in left_out and "1 responses name no option" in unnamed


def test_responses_are_scored_with_all_prefixes_removed(run_script, responses):
    found = json.loads(run_script("score_responses", "--benchmark=video_mme", responses, "--rows", "--mended").out)
    assert found["rows"] == [1, 0] and found["accuracy"] == 50.0


def test_prompts_are_shown(run_script, tmp_path):
    (tmp_path / "docs.json").write_text(json.dumps([DOC]))
    ended = run_script("show_prompts", "--benchmark=video_mme", f"--docs={tmp_path / 'docs.json'}")
    (prompt,) = json.loads(ended.out)
    assert ended.code == 0 and ended.err == "" and prompt.endswith("directly.")


@pytest.mark.parametrize(
    "script, flags, word",
    [
        ("score_responses", ["--benchmark=mlvu", "--mended"], "--mended"),
        ("show_prompts", ["--benchmark=mmlu", "--docs=docs.json"], "'mmlu'"),
    ],
)
def test_bad_flags_end_with_one_line(run_script, responses, script, flags, word):
    ended = run_script(script, *flags, *([responses] if script.startswith("score") else []))
    assert ended.code == 2 and ended.out == "" and ended.err.count("\n") == 1 and word in ended.err
