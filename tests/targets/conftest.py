"""Print the compilers' results after the run."""

import json
from pathlib import Path

RECORD = Path(__file__).parents[2] / "build" / "targets.jsonl"


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("markexpr").startswith("targets") or not RECORD.exists():
        return
    terminalreporter.section("compiled")
    lines = [json.loads(line) for line in RECORD.read_text().splitlines()]
    for line in sorted(lines, key=lambda line: ("program" in line, line["machine"])):
        what = line.get("program") or f"{line['kernel']} {line['problem']} {line['tiles']}"
        named = ("machine", "program", "kernel", "problem", "tiles", "refused")
        rest = {key: value for key, value in line.items() if key not in named}
        terminalreporter.line(f"{line['machine']:<5} {what:<42} " + ", ".join(f"{k} {v}" for k, v in rest.items()))
