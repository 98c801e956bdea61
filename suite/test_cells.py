"""Measure every selected cell. Being worse is not a failure; not being measurable is."""


def test_cell(audit, audit_cell, request):
    """One cell: workload × protocol × method × ratio × seed."""
    with audit.telling(request.node):
        audit.require(audit_cell.workload, audit_cell.method, protocol=audit_cell.protocol)
        record = audit.measure(audit_cell)
        if record is None:
            audit.skip(f"{audit_cell.id}: not in the ledger that is judged")
        if record.status != "ok":
            audit.fail_with_cells(request.node, record.error, [audit_cell])
