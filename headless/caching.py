"""Results of nodes, kept from one prompt to the next.

A result belongs to a key: the node's class, its fingerprint, its constants and the keys of the nodes that it is linked
to. So a node runs again when anything that it depends on has changed, and two equal nodes run once. Kept are the
results that the latest prompt can use (the host's classic cache).
"""

import hashlib
import itertools
import logging
from dataclasses import dataclass, field

from comfy_api.latest._node import overrides
from comfy_execution.graph import NodeNotFoundError
from comfy_execution.graph_utils import is_link

from .validation import input_info, is_v3

logger = logging.getLogger("trajectory")


@dataclass
class Result:
    """What a node gave: for each output the list of its values, and the UI data with the ids it is shown under."""

    outputs: list
    ui: dict | None = None
    meta: dict | None = None


@dataclass
class ResultCache:
    """Results by key. Those of nodes that a node expanded into are also known by that node, their owner."""

    results: dict = field(default_factory=dict)
    owned: dict = field(default_factory=dict)

    def keep(self, keys, owners):
        """Forget the results that neither have one of these keys nor belong to one of these owners."""
        self.owned = {owner: owned for owner, owned in self.owned.items() if owner in owners}
        kept = set(keys).union(*self.owned.values())
        self.results = {key: result for key, result in self.results.items() if key in kept}

    def owns(self, owner, keys):
        """Replace the expansion of an owner: results of its former one that are not part of the new are forgotten."""
        gone = self.owned.get(owner, set()) - set(keys)
        self.owned[owner] = set(keys)
        for key in gone.difference(*(keys for other, keys in self.owned.items() if other != owner)):
            self.results.pop(key, None)


class Keys:
    """Keys of the nodes of one prompt. `call(node_id, function_name, inputs)` runs the nodes' fingerprint functions."""

    _unique = itertools.count()

    def __init__(self, dynprompt, node_table, call):
        self.dynprompt = dynprompt
        self.node_table = node_table
        self.call = call
        self._keys = {}

    def __getitem__(self, node_id):
        if node_id not in self._keys:
            raise NodeNotFoundError(f"There is a link to node {node_id}, which is not in the graph")
        return self._keys[node_id]

    async def add(self, node_ids):
        """Compute the keys of these nodes and return them."""
        return [await self._get(node_id) for node_id in node_ids]

    async def _get(self, node_id):
        if node_id not in self._keys:
            self._keys[node_id] = _digest(self._never())  # met again only in a cycle, which never has results
            self._keys[node_id] = _digest(await self._signature(node_id))
        return self._keys[node_id]

    async def _signature(self, node_id):
        node = self.dynprompt.get_node(node_id)
        cls = self.node_table[node["class_type"]]
        inputs = node.get("inputs", {})
        parts = [node["class_type"], self._plain(await self._fingerprint(node_id, cls, inputs))]
        if self._differs_by_id(cls):
            parts.append(node_id)
        for name, value in sorted(inputs.items()):
            if not is_link(value):
                parts.append((name, self._plain(value)))
            elif self.dynprompt.has_node(value[0]):
                parts.append((name, "link", await self._get(value[0]), value[1]))
            else:
                parts.append((name, self._never()))
        return parts

    async def _fingerprint(self, node_id, cls, inputs):
        """What the node says of things outside the prompt, such as files. Failing to say it means: changed."""
        if is_v3(cls):
            name, asked = "fingerprint_inputs", overrides(cls, "fingerprint_inputs")
        else:
            name, asked = "IS_CHANGED", hasattr(cls, "IS_CHANGED")
        if not asked:
            return False
        declared = cls.INPUT_TYPES()
        constants = {key: [None if is_link(value) else value] for key, value in inputs.items()
                     if input_info(declared, key)[1] is not None}
        try:
            return await self.call(node_id, name, constants)
        except Exception as error:
            logger.info("node %s: %s failed, so it runs again: %s", node_id, name, error)
            return self._never()

    @staticmethod
    def _differs_by_id(cls):
        """Equal V1 nodes that ask for their id do not share a result; of V3 nodes only those declared not idempotent.

        (A V3 node that asks for its id does share: the host overlooks it, so a pack must not rely on it.)
        """
        return getattr(cls, "NOT_IDEMPOTENT", False) or "UNIQUE_ID" in cls.INPUT_TYPES().get("hidden", {}).values()

    def _plain(self, value):
        """A constant in a form whose repr tells equal from different; values that cannot be compared never match."""
        if isinstance(value, float) and value != value:
            return self._never()
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, dict):
            return sorted(((str(key), self._plain(item)) for key, item in value.items()), key=lambda pair: pair[0])
        if isinstance(value, (list, tuple)):
            return [self._plain(item) for item in value]
        return self._never()

    @classmethod
    def _never(cls):
        return ("never equal", next(cls._unique))


def _digest(signature):
    return hashlib.blake2b(repr(signature).encode(), digest_size=16).digest()
