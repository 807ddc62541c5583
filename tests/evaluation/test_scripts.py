"""The two scripts as they are run: one JSON value on stdout, or one line on stderr and exit code 2."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vxl2_jax import evaluation

ROOT = Path(__file__).resolve().parents[2]
OFFICIAL = ROOT.parent / "shared" / "official_runs"


def start(script: str, *arguments: str) -> subprocess.Popen:
    """An unknown platform: the run fails should anything start JAX."""
    command = [sys.executable, str(ROOT / "experiments" / script), *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "none_such"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def result(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_scores_prompts_and_refusals(tmp_path, docs):
    responses, annotations = tmp_path / "responses.jsonl", tmp_path / "docs.json"
    rows = [
        {"response": "Best option: C", "answer": "C", "task_type": "Counting"},
        {"response": "four", "answer": "B", "task_type": "Counting"},
        {"benchmark": "mlvu", "response": "A", "answer": "A"},
    ]
    responses.write_text("\n".join(map(json.dumps, rows)))
    annotations.write_text(json.dumps([docs["video_mme"]]))
    of = ("--benchmark=video_mme", f"--responses={responses}")
    # All at once: most of their time goes into imports.
    scored, mended, shown, *refused = map(
        result,
        [
            start("score_responses.py", *of),
            start("score_responses.py", *of, "--rows", "--mended"),
            start("show_prompts.py", "--benchmark=video_mme", f"--docs={annotations}"),
            start("score_responses.py", "--benchmark=mlvu", f"--responses={responses}", "--mended"),
            start("show_prompts.py", "--benchmark=mmlu", f"--docs={annotations}"),
        ],
    )
    none = {"correct": 0, "total": 2, "accuracy": 0.0}
    assert scored[0] == 0 and json.loads(scored[1]) == {**none, "by": {"task_type": {"Counting": none}}}
    assert scored[2].splitlines() == [
        "score_responses: left out 1 rows of other benchmarks",
        "score_responses: 1 responses name no option and count as wrong",
    ]
    found = json.loads(mended[1])
    assert found["rows"] == [1, 0] and found["accuracy"] == 50.0
    prompts = json.loads(shown[1])
    assert shown[0] == 0 and shown[2] == "" and len(prompts) == 1 and prompts[0].endswith("directly.")
    for (code, out, err), words in zip(refused, ["--mended is for video_mme", "'mmlu' is no benchmark"], strict=True):
        assert code == 2 and out == "" and err.count("\n") == 1 and words in err


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason=f"the original's recorded runs are not at {OFFICIAL}")
def test_the_recorded_runs_of_the_original_are_reproduced():
    with gzip.open(OFFICIAL / "responses.jsonl.gz", "rt") as file:
        recorded = [json.loads(line) for line in file]
    sums, checked = {}, 0
    for name in sorted({row["benchmark"] for row in recorded}):
        benchmark = evaluation.named(name)
        pairs, _ = evaluation.read_responses(benchmark, OFFICIAL / "responses.jsonl.gz")
        verdicts = [evaluation.judge(benchmark, *pair) for pair in pairs]
        own = [row["score"] for row in recorded if row["benchmark"] == name]
        assert [verdict.correct for verdict in verdicts] == own
        checked += len(verdicts)
        by_run = evaluation.grouped(verdicts)["variant/subset"]
        sums |= {f"{name}/{run}": score.as_data() for run, score in by_run.items()}
    assert checked == len(recorded) and sums == json.loads((OFFICIAL / "accuracies.json").read_text())
    for sample in json.loads((OFFICIAL / "prompt_samples.json").read_text()):
        benchmark = evaluation.named(sample["benchmark"])
        assert benchmark.prompt(benchmark.row(sample["doc"])) == sample["prompt"]
