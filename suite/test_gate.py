"""Fail on the verdicts that --audit-fail-on names: a method against its rivals, or against its own earlier results."""


def test_gate(audit, audit_gate, request):
    """The verdict of one comparison."""
    subject = audit_gate.subject
    with audit.telling(request.node):
        audit.require(subject.workload, *subject.methods, protocol=subject.protocol)
        verdict = audit.verdict(audit_gate)
        request.node.user_properties.append(("verdict", verdict.line))
        if audit.only_judges and any(audit.stored(cell) is None for cell in subject.cells()):
            audit.skip(verdict.line)
        if audit.fails(verdict.verdict):
            audit.fail_with_cells(request.node, verdict.line, subject.cells())
