"""prefill_dense.npz and prefill_chunked.npz: masks, logits, caches and greedy answers."""

from __future__ import annotations

import re

import numpy as np

from experiments.parity.cases import Case, Runner
from experiments.parity.golden import Archive, GoldenError, layout_of
from experiments.parity.report import FEATURES, LOGITS, Report
from vxl2_jax import decode
from vxl2_jax.config import ModelConfig
from vxl2_jax.layout import Layout, PrefillRule, attention_pairs, natural_mask
from vxl2_jax.models import qwen2

DENSE = PrefillRule(prev_blocks=None)
_RUN_KINDS = r"logits|kv|kv_last_layer|greedy_tokens|greedy_logits|greedy_margin"

DENSE_KINDS = {
    "cases": r".+_ids",
    "logits": r".+(?<!greedy)_logits",
    "caches": r".+_kv(_last_layer)?",
    "greedy tokens": r".+_greedy_tokens",
    "cases from pixels": r".+_lowres_u8",
}
CHUNKED_KINDS = {
    "masks of cases": r".+_mask_b\d+_p\d+",
    "pair counts": r".+_ratio_b\d+_p\d+",
    "masks of other frame counts": r".+_b\d+_p\d+_mask",
    "logits": r".+_b\d+_p\d+_logits",
    "caches": r".+_b\d+_p\d+_kv(_last_layer)?",
    "greedy tokens": r".+_greedy_tokens",
}


def check_dense(report: Report, dense: Archive, cases: dict[str, Case], runner: Runner, special: dict) -> None:
    """The "pure" variant, and what the cases themselves are made of."""
    report.expect_kinds(dense.name, dense, DENSE_KINDS)
    for case in cases.values():
        check_geometry(report, dense, case, runner, special)
        check_run(report, dense, dense, f"dense {case.name}", case.name, case, DENSE, runner)


def check_geometry(report: Report, dense: Archive, case: Case, runner: Runner, special: dict) -> None:
    """Layout, timestamp places and embeddings of a case."""
    layout, name = case.layout, f"dense {case.name}"
    per_group = runner.config.frames_per_group
    report.exact(f"{name}_groups", layout.groups, -(-case.frames // per_group))
    first = layout.timestamp_ends - np.asarray(layout.timestamp_lengths)
    ends = {"start": layout.global_positions()[first], "end": layout.global_positions()[layout.timestamp_ends - 1] + 1}
    for end, got in ends.items():
        if (key := f"{case.name}_time_token_{end}_indices") in dense:
            report.exact(f"dense {key}", got, dense[key])
    stamps = case.ids[np.stack([ends["start"], ends["end"] - 1])]
    report.exact(
        f"{name}_timestamps (first, last token)",
        stamps,
        np.repeat([[special["time_word"]], [special["colon"]]], layout.groups, 1),
    )
    if not case.pixels:
        report.exact(
            f"{name}_geom", [case.frames, layout.visual, layout.prefix, layout.length], dense[f"{case.name}_geom"]
        )
    if f"{case.name}_inputs_embeds" not in dense:
        return
    got = np.array(qwen2.embed(runner.params["language"], runner.config.language, np.clip(case.ids, 0, None)))
    got[layout.visual_positions()] = case.visual.reshape(layout.visual_length, -1)
    report.check(f"{name}_inputs_embeds", got, dense[f"{case.name}_inputs_embeds"], FEATURES)


def check_run(
    report: Report,
    archive: Archive,
    dense: Archive,
    name: str,
    prefix: str,
    case: Case,
    rule: PrefillRule,
    runner: Runner,
) -> None:
    """The quantities `{prefix}_…` of one run: logits, cache, greedy tokens with their logits."""
    streams, _ = runner.watch(case, rule)
    base = runner.base(case, rule)
    kinds = {kind: archive[f"{prefix}_{kind}"] for kind in _RUN_KINDS.split("|") if f"{prefix}_{kind}" in archive}
    steps = max((len(kinds[kind]) for kind in kinds if kind.startswith("greedy")), default=1)
    answer = runner.ask(case, base, steps)
    if "logits" in kinds:
        _, hidden = runner.watch(case, rule, keep_hidden=True)
        logits = np.concatenate([runner.logits(hidden), np.asarray(answer.question_logits)])
        listed = next((a[f"{case.name}_logit_rows"] for a in (archive, dense) if f"{case.name}_logit_rows" in a), None)
        whole = len(kinds["logits"]) == len(logits) or listed is None
        report.check(f"{name}_logits", logits if whole else logits[listed], kinds["logits"], LOGITS, len(case.ids))
    if "kv" in kinds or "kv_last_layer" in kinds:
        check_cache(report, name, kinds, runner.natural_cache(case, streams, base, rotated=True), case)
    check_greedy(report, name, kinds, answer, case)


def check_cache(
    report: Report, name: str, kinds: dict[str, np.ndarray], cache: np.ndarray, case: Case, kind: str = "kv"
) -> None:
    """A cache of all layers, or of the last layer only."""
    for suffix, got in ((kind, cache), (f"{kind}_last_layer", cache[-1])):
        if suffix in kinds:
            report.check(f"{name}_{suffix}", got, kinds[suffix], FEATURES, len(case.ids))


def check_greedy(report: Report, name: str, kinds: dict[str, np.ndarray], answer: decode.Generated, case: Case) -> None:
    """Greedy tokens, their logits and the gap between the two best of each."""
    logits = np.asarray(answer.logits)
    best = np.sort(logits, axis=-1)
    steps = slice(sure_steps(report, kinds))
    if "greedy_tokens" in kinds:
        report.exact(f"{name}_greedy_tokens", answer.tokens[steps], kinds["greedy_tokens"][steps])
    if "greedy_logits" in kinds:
        report.check(f"{name}_greedy_logits", logits[steps], kinds["greedy_logits"][steps], LOGITS, len(case.ids))
    if "greedy_margin" in kinds:
        margin = best[:, -1] - best[:, -2]
        report.check(f"{name}_greedy_margin", margin[steps], kinds["greedy_margin"][steps], 2 * LOGITS, len(case.ids))


def sure_steps(report: Report, kinds: dict[str, np.ndarray]) -> int | None:
    """Steps up to the first whose two best logits lie closer than rounding can tell apart (None: all of them).

    At such a step a cache of fewer bits may say the other token, and what follows is another text.
    """
    if report.rounding == 1 or "greedy_logits" not in kinds:
        return None
    golden = np.sort(kinds["greedy_logits"], axis=-1)
    close = golden[:, -1] - golden[:, -2] < 2 * report.allowed(kinds["greedy_logits"], LOGITS)
    return int(np.argmax(close)) + 1 if close.any() else None


def check_chunked(
    report: Report,
    chunked: Archive,
    dense: Archive,
    cases: dict[str, Case],
    runner: Runner,
    unnamed: dict[str, PrefillRule],
) -> None:
    """The "w_chunk" variant. `unnamed`: the rule of cases whose keys do not name their setting."""
    report.expect_kinds(chunked.name, chunked, CHUNKED_KINDS)
    for found in chunked.matching(r"(.+)_(mask|ratio)_b(\d+)_p(\d+)"):
        case, rule = cases.get(found[1]), PrefillRule(int(found[3]), int(found[4]))
        if case is not None:
            check_mask(report, chunked, found, case.layout, rule, len(case.question))
    check_other_layouts(report, chunked, runner.config)
    runs = {
        (found[1], int(found[2]), int(found[3])) for found in chunked.matching(rf"(.+)_b(\d+)_p(\d+)_(?:{_RUN_KINDS})")
    }
    for name, block_size, prev_blocks in sorted(runs):
        if name in cases:
            prefix = f"{name}_b{block_size}_p{prev_blocks}"
            check_run(
                report,
                chunked,
                dense,
                f"chunked {prefix}",
                prefix,
                cases[name],
                PrefillRule(block_size, prev_blocks),
                runner,
            )
    for name, case in cases.items():
        if any(f"{name}_{kind}" in chunked for kind in _RUN_KINDS.split("|")):
            check_run(
                report, chunked, dense, f"chunked {name}", name, case, unnamed.get(name, PrefillRule(1, 1)), runner
            )


def check_mask(report: Report, chunked: Archive, found, layout: Layout, rule: PrefillRule, question: int) -> None:
    """`found` is the key's match: a mask (bits packed along rows) or [allowed pairs, length]."""
    if found[2] == "mask":
        got = np.packbits(natural_mask(layout, rule, question), axis=1)
    else:
        got = [attention_pairs(layout, rule, question)[0], layout.length + question]
    report.exact(f"chunked {found[0]}", got, chunked[found[0]])


def check_other_layouts(report: Report, chunked: Archive, config: ModelConfig) -> None:
    """Masks of other frame counts; the layout comes from the ids in `_time_embedding`."""
    for found in chunked.matching(r"((.+)_b(\d+)_p(\d+))_meta"):
        name, rule = found[1], PrefillRule(int(found[3]), int(found[4]))
        if len(meta := chunked[found[0]]) != 4:
            raise GoldenError(f"{chunked.name}: {found[0]} must hold prefix, suffix, length, allowed pairs")
        prefix, question = int(meta[0]), int(meta[1])
        layout = layout_of(chunked[f"{name}_time_embedding"], prefix, config.visual_placeholder)
        pairs, _ = attention_pairs(layout, rule, question)
        report.exact(f"chunked {found[0]}", [layout.prefix, question, layout.length + question, pairs], meta)
        if f"{name}_mask" in chunked:
            report.exact(
                f"chunked {name}_mask",
                np.packbits(natural_mask(layout, rule, question), axis=1),
                chunked[f"{name}_mask"],
            )
        if named := re.fullmatch(r"frames(\d+)_pg(\d+)", found[2]):
            groups = -(-int(named[1]) // config.frames_per_group)
            report.exact(f"chunked {name} (groups, V)", [layout.groups, layout.visual], [groups, int(named[2])])
