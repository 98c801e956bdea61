"""Judge every comparison by every rule that its protocol requires, from measured records."""

import pytest


def test_fairness(audit, audit_check):
    """One comparison × one rule, over all paired seeds."""
    comparison = audit_check.comparison
    audit.require(comparison.workload, comparison.left, comparison.right)
    finding = audit.judge(audit_check)
    if finding.verdict == "not measured":
        pytest.skip(finding.line)
    if finding.verdict != "pass":
        pytest.fail(finding.line, pytrace=False)
