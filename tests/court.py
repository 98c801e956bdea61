"""A small campaign for tests of what the audit says of methods."""

from pruneaudit.audit.docket import Docket
from pruneaudit.audit.evidence import Evidence
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.planner import Campaign
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.cells import Arm
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.names import method_id
from pruneaudit.catalog.settings import Settings
from pruneaudit.ledger.store import Ledger
from pruneaudit.training.runtime import Runtime

#: The last is the smallest with batch norm.
LENET, RESNET, CONVNET = "lenet5-digits", "resnet20-digits", "convnet4-digits"
SMOKE = Settings("smoke")


class Court:
    """A campaign at a ledger of its own, and what the audit says of its arms."""

    def __init__(self, root, *files):
        self.catalog = Catalog(extra_methods=tuple(str(file) for file in files))
        self.ledger = Ledger(root)
        stages = Stages(self.ledger, self.catalog, Runtime())
        executor = LocalExecutor(self.ledger, stages, "session")
        self.campaign = Campaign(self.catalog, self.ledger, SMOKE, executor)

    def measure(self, arm):
        for cell in arm.cells():
            self.campaign.obtain(cell)

    @property
    def docket(self):
        def cell_of(cell):
            return self.ledger.cell(SMOKE.key(cell, self.catalog.workload(cell.workload)))

        return Docket(self.catalog, self.ledger, cell_of, labels=("smoke",))

    def findings(self, arm):
        """What the rules say that the protocol requires of an arm."""
        self.measure(arm)
        return {finding.rule: finding for finding in self.docket.findings(arm) if finding.required}

    def cell(self, arm):
        return self.docket.cell_of(arm.cells()[0])

    def evidence(self, arm):
        return Evidence.read(self.cell(arm), self.ledger)


def arm(method, workload=LENET, protocol="s3.2", ratio=0.5):
    return Arm(workload, protocol, method_id(method), ratio, (0,))
