"""Does a method keep its contract? Seconds each, on freshly initialised networks."""

from pruneaudit.errors import AuditError


def test_conformance(audit, audit_conformance, request):
    """One method × one check on one workload."""
    case = audit_conformance
    with audit.telling(request.node):
        audit.require(case.workload, case.method)
        # Collecting loads no torch.
        from pruneaudit.method.isolation import check

        try:
            check(case.check, audit.catalog, case.method, case.workload, audit.runtime)
        except AuditError as error:
            audit.fail(request.node, error, case.method)
