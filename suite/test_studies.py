"""Studies: measure what each asks, and judge its sentences. One that does not hold is a result, not a failure."""

import pytest

from pruneaudit.errors import AuditError


def test_study(audit, audit_question, request):
    """One part of a study: a population of pruned networks, or a sentence about two arms."""
    question = audit_question
    methods = [] if question.claim is None else [question.claim.left, question.claim.right]
    with audit.telling(request.node):
        for workload in question.workloads(audit.catalog):
            audit.require(workload.name, *methods)
        try:
            judged = audit.answer(question)
        except AuditError as error:
            pytest.fail(str(error), pytrace=False)
        for one in judged or ():
            line = f"{one.says}: {one.text} [{one.place}: {one.value:+.2f}, {one.measured}]"
            request.node.user_properties.append(("sentence", f"{question.study.name}: {line}"))
        if not judged:
            request.node.user_properties.append(("sentence", f"{question.study.name}: measured: {question.part}"))
