"""Runs a benchmark: hands its videos to a fleet of workers, and writes a record per video into the run's folder.

Any fleet gives the same records. A run resumes after an interruption, and retries videos that could not be watched.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vxl2_jax.api import Model
from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import replay, run_folder
from vxl2_jax.evaluation.benchmark_run import BenchmarkRun
from vxl2_jax.evaluation.worker import BenchmarkRecipe
from vxl2_jax.fleet import here
from vxl2_jax.fleet.work import Fleet, FleetLog, WorkItem, size_of
from vxl2_jax.options import AskOptions
from vxl2_jax.relevance import oracle
from vxl2_jax.storage.jsonl import append


def evaluate(
    run: BenchmarkRun,
    load: Callable[[], Model],
    out: Path,
    *,
    fleet: Fleet = here.run,
    memories: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any] | None:
    """Answer the questions about the videos that have no answer yet in the folder `out`.

    A video that cannot be read or asked (see `batch.JobResult`), or that ends its workers, gets a record with its error, a
    question that cannot be asked is listed with its error in the record of its video, and the run continues.

    Args:
      run: the settings.
      load: loads the model, in each worker; called only if something is left to answer.
      out: the run's folder.
      fleet: the workers; by default this process.
      memories: see `Model.answer_all`; no setting of the run.
      progress: called with (videos done, videos in all).

    Returns:
      What the fleet did (`FleetLog.as_data`), which is also added to the folder; None if nothing was left to do.

    Raises RequestError for options out of range, for invalid oracle files or those of another benchmark, for a folder with
    a run of other settings, if another process is writing the same records, or if workers have different models.
    """
    AskOptions(**run.ask).check()
    if run.oracle is not None:
        if run.mode != "bilevel":
            raise RequestError(f"relevance {oracle.PREFIX}FILE selects chunks: it needs mode bilevel, not {run.mode}")
        replay.read(run.name, run.oracle, run.items)
    settings = run.settings
    run_folder.check_settings(out, settings)
    with run_folder.open_records(out) as file:
        errors = run_folder.read_errors(out)
        unanswered = [item for item in run.items if errors.get(item.video, "") is not None]
        todo = [WorkItem(item.index, item, size_of(item.file)) for item in unanswered if item.path is not None]
        recipe = BenchmarkRecipe(replace(run, items=(), left_out=()), load, memories)
        log, started = FleetLog(), time.perf_counter()
        claimed, did = set[str](), None

        def claim(worker: str, about: dict[str, Any]) -> None:
            """Before the first record of each worker: the folder's run is that of its model."""
            if worker not in claimed:
                run_folder.claim(out, settings | about["settings"], about["made_with"])
                claimed.add(worker)

        done = len(run.items) - len(todo)
        report = progress or (lambda done, total: None)
        if todo:
            report(done, len(run.items))
            try:
                for result in fleet(recipe, todo, log):
                    if about := log.worker(result.worker).about:
                        claim(result.worker, about)
                    append(file, {"index": result.item.key, "video": result.item.content.video} | result.row)
                    done += 1
                    report(done, len(run.items))
            finally:
                did = log.as_data(time.perf_counter() - started)
                if log.about is not None:
                    run_folder.add_fleet(out, did)
        if not (out / run_folder.RUN_FILE).exists():  # no worker came so far as to say what its model is
            claim("", log.about or recipe().about)
        for item in unanswered:
            if item.path is None and errors.get(item.video) != item.problem:
                append(file, {"index": item.index, "video": item.video, "error": item.problem})
    return did
