"""Says something else to the referee than what its process would say."""

import struct

from pruneaudit import FilterScore
from pruneaudit.method.channel import Line


class ForgesWords(FilterScore):
    """L1 norm, and another word in place of the decision."""

    def __init__(self, word="decides nothing"):
        self.word = word

    def score(self, layer, task):
        """The norm of a filter."""
        return layer.weight.flatten(1).abs().sum(1)

    def prune(self, task):
        """Decide, and see to it that something else is said."""
        say, word = Line.say, self.word

        def said(line, kind, tensors=None, **facts):
            if kind != "pruned":
                say(line, kind, tensors, **facts)
            elif word == "thirty gigabytes":
                line._socket.sendall(struct.pack("!QQ", 2, 30 << 30) + b"{}")
            elif word == "decides nothing":
                say(line, kind, tensors, **{name: facts[name] for name in facts if name != "kept"})
            elif word == "less than no step":
                say(line, kind, tensors, **facts | {"consumption": facts["consumption"] | {"optimiser_steps": -1}})
            elif word == "epochs of no training":
                say(line, kind, tensors, **facts | {"epoch_starts": [0, 17]})
            elif word == "a batch of none":
                say(line, "batch", stream="prune", epoch=0, size=0, number=0, double=False)
            else:
                say(line, "error", type="ValueError", text="\x1b[31mred", traceback="")

        Line.say = said
        return super().prune(task)
