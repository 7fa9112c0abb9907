"""Description of a node: `Schema`, and the hidden values that it may ask for."""

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ._types import Input, Output


class Hidden(str, Enum):
    """Values that the executor hands to a node without a socket; the member's value is the V1 name."""

    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"
    dynprompt = "DYNPROMPT"
    auth_token_comfy_org = "AUTH_TOKEN_COMFY_ORG"
    api_key_comfy_org = "API_KEY_COMFY_ORG"


class HiddenHolder:
    """The hidden values of one call (`cls.hidden`); one that was not asked for is None."""

    def __init__(self, unique_id: str, prompt: Any, extra_pnginfo: Any, dynprompt: Any, auth_token_comfy_org: str,
                 api_key_comfy_org: str, **kwargs):
        self.unique_id = unique_id
        self.prompt = prompt
        self.extra_pnginfo = extra_pnginfo
        self.dynprompt = dynprompt
        self.auth_token_comfy_org = auth_token_comfy_org
        self.api_key_comfy_org = api_key_comfy_org

    def __getattr__(self, name):
        return None

    @classmethod
    def from_dict(cls, d: dict | None):
        """From {Hidden member: value}; a member equals its V1 name."""
        values = d or {}
        return cls(**{member.name: values.get(member) for member in Hidden})


@dataclass
class Schema:
    """All that the host knows of a node before it runs. Fields and their order are those of ComfyUI 0.3.64."""

    node_id: str
    display_name: str = None
    category: str = "sd"
    inputs: list[Input] = None
    outputs: list[Output] = None
    hidden: list[Hidden] = None
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False

    def validate(self):
        """Raise ValueError when two inputs, two outputs, or an input and an output share an id."""
        inputs = [i.id for i in self.inputs or ()]
        outputs = [o.id for o in self.outputs or ()]
        problems = [f"{group} ids must be unique, but {', '.join(twice)} occurs more than once."
                    for group, twice in (("Input", _repeated(inputs)), ("Output", _repeated(outputs))) if twice]
        shared = sorted(set(inputs) & set(outputs))
        if shared:
            problems.append(f"Inputs and outputs must not share an id, but both have {', '.join(shared)}.")
        if problems:
            raise ValueError(f"Node {self.node_id}: " + "\n".join(problems))

    def finalize(self):
        """Add the hidden values that the node's kind implies, and ids for the outputs that have none."""
        implied = []
        if self.is_api_node:
            implied += [Hidden.auth_token_comfy_org, Hidden.api_key_comfy_org]
        if self.is_output_node:
            implied += [Hidden.prompt, Hidden.extra_pnginfo]
        if implied:
            self.hidden = list(dict.fromkeys([*(self.hidden or ()), *implied]))
        for index, output in enumerate(self.outputs or ()):
            if output.id is None:
                output.id = f"_{index}_{output.io_type}_"

    def _input_types(self):
        """V1's INPUT_TYPES: {"required": {id: (type, settings)}, "optional": ..., "hidden": {name: (V1 name,)}}."""
        groups = {"required": {}}
        for i in self.inputs or ():
            settings = i.as_dict()
            optional = settings.pop("optional", False)
            groups.setdefault("optional" if optional else "required", {})[i.id] = (i.get_io_type(), settings)
        if self.hidden:
            groups["hidden"] = {hidden.name: (hidden.value,) for hidden in self.hidden}
        return groups

    def _object_info(self, python_module):
        """The node's entry in `/object_info`, keys in the host's order."""
        inputs = self._input_types()
        outputs = self.outputs or ()
        return {
            "input": inputs,
            "input_order": {group: list(members) for group, members in inputs.items()},
            "output": [o.io_type for o in outputs],
            "output_is_list": [o.is_output_list for o in outputs],
            "output_name": [o.display_name or o.io_type for o in outputs],
            "output_tooltips": [o.tooltip or None for o in outputs],
            "name": self.node_id,
            "display_name": self.display_name,
            "description": self.description,
            "python_module": python_module,
            "category": self.category,
            "output_node": self.is_output_node,
            "deprecated": self.is_deprecated,
            "experimental": self.is_experimental,
            "api_node": self.is_api_node,
        }


def _repeated(ids):
    return [name for name, count in Counter(ids).items() if count > 1]
