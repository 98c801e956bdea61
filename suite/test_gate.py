"""Fail on the verdicts that --audit-fail-on names: a method against its rivals, or against its own earlier results."""

import pytest


def test_gate(audit, audit_gate, record_property):
    """The verdict of one comparison."""
    subject = audit_gate.subject
    audit.require(subject.workload, *subject.methods)
    verdict = audit.verdict(audit_gate)
    record_property("verdict", verdict.line)
    if audit.only_judges and any(audit.stored(cell) is None for cell in subject.cells()):
        pytest.skip(verdict.line)
    if audit.fails(verdict.verdict):
        pytest.fail(verdict.line, pytrace=False)
