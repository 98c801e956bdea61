"""Judge every arm and comparison by every rule that its protocol requires, from measured records."""

import pytest


def test_fairness(audit, audit_check, record_property):
    """One arm or comparison × one rule, over all paired seeds."""
    subject = audit_check.subject
    audit.require(subject.workload, *subject.methods)
    finding = audit.judge(audit_check)
    record_property("finding", finding.line)
    if finding.verdict == "not measured" or (finding.verdict == "incomplete" and audit.only_judges):
        pytest.skip(finding.line)
    if finding.waived:
        pytest.xfail(finding.line)
    if finding.verdict != "pass":
        pytest.fail(finding.line, pytrace=False)
