"""Judge every arm and comparison by every rule that its protocol requires, from measured records."""


def test_fairness(audit, audit_check, request):
    """One arm or comparison × one rule, over all paired seeds."""
    subject = audit_check.subject
    with audit.telling(request.node):
        audit.require(subject.workload, *subject.methods, protocol=subject.protocol)
        finding = audit.judge(audit_check)
        request.node.user_properties.append(("finding", finding.line))
        if finding.verdict == "not measured" or (finding.verdict == "incomplete" and audit.only_judges):
            audit.skip(finding.line)
        if finding.waived:
            audit.waive(finding.line)
        if finding.verdict != "pass":
            # What is broken is told; what could not be judged depends on the cells that failed.
            incomplete = finding.verdict == "incomplete" or audit_check.rule == "F607"
            audit.fail_with_cells(request.node, finding.line, subject.cells() if incomplete else [])
