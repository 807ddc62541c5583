"""One line per quantity, and whether all of them are within tolerance."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from experiments.parity.golden import Archive

FEATURES, LOGITS = 5e-5, 1e-4
"""Absolute tolerances for arrays whose values are of order one (features, caches; logits)."""


@dataclass
class Report:
    """Counts and failed names; `check` and `exact` print as they go.

    `rounding` widens every tolerance: 1 for float32 throughout, more for caches of fewer bits.
    """

    rounding: float = 1.0
    checked: int = 0
    failed: list[str] = field(default_factory=list)
    notes: int = 0

    def line(self, name: str, found: str, allowed: str, ok: bool) -> None:
        """Print and count one comparison."""
        print(f"{name:<58} {found:<24} {allowed:<12} {'ok' if ok else 'FAIL'}", flush=True)
        self.checked += 1
        if not ok:
            self.failed.append(name)

    def check(self, name: str, got: np.ndarray, want: np.ndarray, tolerance: float, positions: int = 0) -> None:
        """Compare values by their worst absolute difference.

        The tolerance is meant for arrays of order one and grows with the golden array's root mean square
        where that exceeds 1, since rounding errors do. It also grows where rotary `positions` are many:
        the original forms angles in fp32 and so is off by up to position · 2⁻²⁴ rad; we are not.
        """
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        if got.shape != want.shape:
            return self.line(name, f"shape {got.shape}, not {want.shape}", "shape", False)
        allowed = self.allowed(want, tolerance) * max(1.0, positions * 2.0**-24 / FEATURES / self.rounding)
        worst = float(np.max(np.abs(got - want), initial=0.0))
        self.line(name, f"{worst:.2e}", f"{allowed:.1e}", worst <= allowed)  # NaN fails

    def allowed(self, want: np.ndarray, tolerance: float) -> float:
        """The tolerance for a golden array, rotary positions apart."""
        size = float(np.sqrt(np.mean(np.square(want, dtype=np.float64)))) if want.size else 1.0
        return tolerance * self.rounding * max(1.0, size)

    def exact(self, name: str, got: object, want: object) -> None:
        """Compare values that must be equal: masks, lengths, tokens, texts."""
        got, want = np.asarray(got), np.asarray(want)
        if got.shape != want.shape:
            return self.line(name, f"shape {got.shape}, not {want.shape}", "exact", False)
        wrong = int(np.sum(got != want))
        self.line(name, f"differs in {wrong} of {got.size}" if wrong else "exact", "exact", not wrong)

    def fail(self, name: str, why: str) -> None:
        """Something that could not be compared though it should have been."""
        self.line(name, why, "-", False)

    def note(self, text: str) -> None:
        """Something worth knowing that is no failure."""
        print(f"note: {text}", flush=True)
        self.notes += 1

    def expect_kinds(self, where: str, present: Archive, kinds: dict[str, str]) -> None:
        """Note the kinds of quantity (name → pattern of its keys) of which a file holds none."""
        for kind, pattern in kinds.items():
            if not present.matching(pattern):
                self.note(f"{where} holds no {kind}")

    def summary(self) -> str:
        """The last line."""
        if not self.failed:
            return f"parity: all {self.checked} quantities within tolerance"
        names = ", ".join(self.failed[:5]) + (", …" if len(self.failed) > 5 else "")
        return f"parity: {len(self.failed)} of {self.checked} quantities out: {names}"
