"""What one check found, and a table of them for a person."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "bad"]

_MARK = {"ok": "ok", "warning": "warn", "bad": "BAD"}


@dataclass(frozen=True)
class Finding:
    """`found` is what is there, `remedy` what mends it: empty where nothing is to be mended."""

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, "warning", found, remedy)


def bad(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, "bad", found, remedy)


def exit_code(findings: Sequence[Finding]) -> int:
    """1 where something must be mended before the stages can run."""
    return int(any(finding.verdict == "bad" for finding in findings))


def shown(findings: Sequence[Finding], *, as_json: bool) -> str:
    if as_json:
        return json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False) + "\n"
    return table(findings)


def table(findings: Sequence[Finding]) -> str:
    """A line a finding, its remedy below it, and a last line that sums up."""
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{_MARK[finding.verdict]:<4}  {finding.check:<{width}}  {finding.found}")
        if finding.remedy:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.remedy}")
    counts = [sum(finding.verdict == verdict for finding in findings) for verdict in ("bad", "warning")]
    sums_up = f"{len(findings)} checks: {counts[0]} bad, {counts[1]} warnings"
    return "\n".join([*lines, "", sums_up]) + "\n"
