"""bilevel.npz: chunks kept dense or pooled, the mixed cache, and answers over it."""

from __future__ import annotations

import jax
import numpy as np

from experiments.parity.assembled import assemble, plan_mixed
from experiments.parity.cases import Case, Runner, turn_back
from experiments.parity.golden import Archive, GoldenError
from experiments.parity.language import DENSE, check_cache, check_greedy
from experiments.parity.report import LOGITS, Report
from vxl2_jax.cache import views
from vxl2_jax.layout import PrefillRule
from vxl2_jax.relevance import selection

_RUN_KINDS = (
    "mixed_len",
    "mixed_kv",
    "mixed_kv_last_layer",
    "num_blocks",
    "dense_blocks",
    "suffix_logits",
    "greedy_tokens",
    "greedy_logits",
    "greedy_margin",
)
_ROOM = 3
"""Dense chunks that there is room for, besides the first and the last one: runs that have no more share a program."""
KINDS = {
    "configurations": r".+_config",
    "mixed caches": r".+_mixed_kv(_last_layer)?",
    "suffix logits": r".+_suffix_logits",
    "unrotated pre-fill caches": r".+_prefill_kv(_last_layer)?",
    "greedy tokens": r".+_greedy_tokens",
    "dense pre-fill for a selection of None": r".+_none_logits",
    "dense chunk lists": r".+_dense_blocks",
}


def case_of(name: str, cases: dict[str, Case]) -> Case | None:
    """The case that a run's name begins with ("small_c2_p4" → "small"); the longest such name."""
    fitting = [case for case in cases if name == case or name.startswith(f"{case}_")]
    return cases[max(fitting, key=len)] if fitting else None


def prefill_rules(bilevel: Archive, cases: dict[str, Case]) -> dict[str, PrefillRule]:
    """The pre-fill setting of the cases that have one run under their own name.

    prefill_chunked.npz stores such a case without naming its setting.
    """
    named = [name for name in cases if f"{name}_config" in bilevel]
    return {name: PrefillRule(*(int(n) for n in bilevel[f"{name}_config"][:2])) for name in named}


def check(report: Report, bilevel: Archive, cases: dict[str, Case], runner: Runner) -> None:
    """Every quantity of bilevel.npz."""
    report.expect_kinds(bilevel.name, bilevel, KINDS)
    caches = {
        (found[1], found[2], found[3]) for found in bilevel.matching(r"(.+)_b(\d+)_p(\d+)_prefill_kv(?:_last_layer)?")
    }
    for name, block_size, prev_blocks in sorted(caches):
        if name in cases:
            check_prefill_cache(report, bilevel, cases[name], PrefillRule(int(block_size), int(prev_blocks)), runner)
    for found in bilevel.matching(r"(.+)_config"):
        if case := case_of(found[1], cases):
            check_run(report, bilevel, found[1], case, runner)
    for found in bilevel.matching(r"(.+)_none_logits"):
        if case := case_of(found[1], cases):
            answer = runner.ask(case, runner.base(case, DENSE), 1)
            report.check(f"bilevel {found[0]}", answer.question_logits, bilevel[found[0]], LOGITS, len(case.ids))


def check_prefill_cache(report: Report, bilevel: Archive, case: Case, rule: PrefillRule, runner: Runner) -> None:
    """The whole prompt's cache after chunked pre-filling, keys not rotated."""
    prefix = f"{case.name}_b{rule.block_size}_p{rule.prev_blocks}"
    streams, _ = runner.watch(case, rule)
    cache = runner.natural_cache(case, streams, runner.base(case, rule), rotated=False)
    kinds = {k: bilevel[f"{prefix}_{k}"] for k in ("prefill_kv", "prefill_kv_last_layer") if f"{prefix}_{k}" in bilevel}
    check_cache(report, f"bilevel {prefix}", kinds, cache, case, "prefill_kv")


def check_run(report: Report, bilevel: Archive, name: str, case: Case, runner: Runner) -> None:
    """One setting: which chunks are dense, the mixed cache, the answer over it."""
    kinds = {kind: bilevel[f"{name}_{kind}"] for kind in _RUN_KINDS if f"{name}_{kind}" in bilevel}
    config = bilevel[f"{name}_config"]
    if len(config) != 5:
        raise GoldenError(
            f"{bilevel.name}: {name}_config must hold block size, previous blocks, top-k, chunk size, compression"
        )
    # Units are listed; the top-k that made the list is not needed.
    block_size, prev_blocks, _, chunk_size, compression = (int(n) for n in config)
    units = bilevel[f"{name}_selected_unit_indices"].tolist()
    memory = runner.remember(case, PrefillRule(block_size, prev_blocks), compression)
    chunks = case.layout.chunks(chunk_size)
    dense = selection.dense_chunks(chunks, selection.chunks_of_units(units, chunks, chunk_size))
    plan = plan_mixed(case.layout, compression, chunk_size, dense)
    length = len(plan.store)
    exact = {"num_blocks": chunks + 1, "dense_blocks": np.flatnonzero(dense), "mixed_len": length}
    for kind, got in exact.items():
        if kind in kinds:
            report.exact(f"bilevel {name}_{kind}", got, kinds[kind])
    stream = assemble(memory, plan)
    keys, values = (np.asarray(part)[:, :, :length] for part in stream[:2])
    cache = np.stack([turn_back(keys, runner.config), values], axis=1)
    check_cache(report, f"bilevel {name}", kinds, cache, case, "mixed_kv")
    base = views.mixed_view(memory, chunk_size, dense[None], runner.kernel, _ROOM)
    steps = max((len(kinds[kind]) for kind in kinds if kind.startswith("greedy")), default=1)
    answer = jax.block_until_ready(runner.ask(case, base, steps))
    if "suffix_logits" in kinds:
        report.check(
            f"bilevel {name}_suffix_logits", answer.question_logits, kinds["suffix_logits"], LOGITS, len(case.ids)
        )
    check_greedy(report, f"bilevel {name}", kinds, answer, case)
