"""Base class of V3 nodes, and what a node returns."""

import inspect
from abc import ABC, abstractmethod
from typing import Any

from comfy_execution.graph_utils import ExecutionBlocker

from ._schema import HiddenHolder, Schema


class _UIOutput(ABC):
    """Something that the editor shows on the node."""

    @abstractmethod
    def as_dict(self) -> dict:
        """{kind: list of records}, as sent in the `executed` event."""


class NodeOutput:
    """Return value of a node: one value an output, and optionally UI data, an expansion graph or a reason to block."""

    def __init__(self, *args: Any, ui: _UIOutput | dict = None, expand: dict = None, block_execution: str = None):
        self.args, self.ui = args, ui
        self.expand, self.block_execution = expand, block_execution

    @property
    def result(self):
        return self.args or None

    def __getitem__(self, index):
        return self.args[index]


class _ClassProperty:
    def __init__(self, read):
        self.read = read

    def __get__(self, instance, owner):
        return self.read(owner)


def _from_schema(read):
    """A V1 class attribute that the schema answers."""
    return _ClassProperty(lambda cls: read(cls.SCHEMA or cls.GET_SCHEMA()))


class _Locked(type):
    """Metaclass of the class a node runs as: state on a class would outlive the run."""

    def __setattr__(cls, name, value):
        raise AttributeError(f"{cls.__name__}.{name} cannot be set: a node class keeps no state between calls")


class ComfyNode:
    """A node: `define_schema` describes it, `execute` runs it. All methods are class methods; a class has no state."""

    RELATIVE_PYTHON_MODULE = None
    SCHEMA: Schema = None
    hidden: HiddenHolder = None

    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError

    @classmethod
    def execute(cls, **kwargs) -> NodeOutput:
        raise NotImplementedError

    @classmethod
    def validate_inputs(cls, **kwargs) -> bool | str:
        """True, or why the inputs are refused. The inputs it names lose the built-in range and option checks."""
        raise NotImplementedError

    @classmethod
    def fingerprint_inputs(cls, **kwargs) -> Any:
        """A value that changes when the node must run again although its inputs are the same (a file's hash)."""
        raise NotImplementedError

    @classmethod
    def check_lazy_status(cls, **kwargs) -> list[str]:
        """Names of the lazy inputs to compute next; [] when the node can run."""
        return [name for name, value in kwargs.items() if value is None]

    def __init_subclass__(cls, **arguments):
        super().__init_subclass__(**arguments)
        if "SCHEMA" not in vars(cls):  # a subclass must not answer with its parent's schema
            cls.SCHEMA = None

    # --- the V1 face that the executor and /object_info read ---

    @classmethod
    def VALIDATE_CLASS(cls):
        for method in ("define_schema", "execute"):
            if not overrides(cls, method):
                raise Exception(f"Node class {cls.__name__} has no {method}.")

    @classmethod
    def FINALIZE_SCHEMA(cls) -> Schema:
        schema = cls.define_schema()
        schema.finalize()
        return schema

    @classmethod
    def GET_SCHEMA(cls) -> Schema:
        """The finished and validated schema; raises when the class or its schema is not sound."""
        cls.VALIDATE_CLASS()
        schema = cls.FINALIZE_SCHEMA()
        schema.validate()
        cls.SCHEMA = schema
        return schema

    @classmethod
    def INPUT_TYPES(cls, include_hidden=True, return_schema=False):
        """Asked anew each time: options such as file lists may have changed."""
        schema = cls.FINALIZE_SCHEMA()
        inputs = schema._input_types()
        if not include_hidden:
            inputs.pop("hidden", None)
        return (inputs, schema) if return_schema else inputs

    @classmethod
    def GET_NODE_INFO_V1(cls) -> dict:
        return cls.GET_SCHEMA()._object_info(cls.RELATIVE_PYTHON_MODULE)

    @classmethod
    def PREPARE_CLASS_CLONE(cls, hidden_inputs: dict | None) -> type["ComfyNode"]:
        """The locked stand-in that one call runs on, with its hidden values."""
        members = {"hidden": HiddenHolder.from_dict(hidden_inputs), "SCHEMA": cls.SCHEMA or cls.GET_SCHEMA()}
        return _Locked(cls.__name__, (cls,), members)

    @classmethod
    def EXECUTE_NORMALIZED(cls, *args, **kwargs) -> NodeOutput:
        return cls._normalized(cls.execute(*args, **kwargs))

    @classmethod
    async def EXECUTE_NORMALIZED_ASYNC(cls, *args, **kwargs) -> NodeOutput:
        return cls._normalized(await cls.execute(*args, **kwargs))

    @classmethod
    def _normalized(cls, returned) -> NodeOutput:
        """What `execute` returned as a NodeOutput.

        Refused because real hosts fail on them: a dict (0.3.64 crashes), and blocking without values (the outputs are
        lost and the nodes downstream run with None).
        """
        if returned is None:
            returned = NodeOutput()
        elif isinstance(returned, tuple):
            returned = NodeOutput(*returned)
        elif isinstance(returned, ExecutionBlocker):
            returned = NodeOutput(block_execution=returned.message)
        elif not isinstance(returned, NodeOutput):
            raise TypeError(f"Node {cls.__name__} returned {type(returned).__name__}; return io.NodeOutput(...).")
        if returned.expand is not None and not cls.SCHEMA.enable_expand:
            raise Exception(f"Node {cls.__name__} returned expand=...; its schema must say enable_expand=True.")
        if returned.block_execution is not None and cls.RETURN_TYPES and not (returned.args or returned.expand):
            raise ValueError(f"Node {cls.__name__} blocks without values; return io.NodeOutput(None, ..., "
                             f"block_execution=...) with one None for each of its {len(cls.RETURN_TYPES)} outputs.")
        return returned

    FUNCTION = _ClassProperty(lambda cls: "EXECUTE_NORMALIZED_ASYNC" if inspect.iscoroutinefunction(cls.execute)
                              else "EXECUTE_NORMALIZED")
    DESCRIPTION = _from_schema(lambda schema: schema.description)
    CATEGORY = _from_schema(lambda schema: schema.category)
    EXPERIMENTAL = _from_schema(lambda schema: schema.is_experimental)
    DEPRECATED = _from_schema(lambda schema: schema.is_deprecated)
    API_NODE = _from_schema(lambda schema: schema.is_api_node)
    OUTPUT_NODE = _from_schema(lambda schema: schema.is_output_node)
    NOT_IDEMPOTENT = _from_schema(lambda schema: schema.not_idempotent)
    INPUT_IS_LIST = _from_schema(lambda schema: schema.is_input_list)
    OUTPUT_IS_LIST = _from_schema(lambda schema: [o.is_output_list for o in schema.outputs or ()])
    RETURN_TYPES = _from_schema(lambda schema: [o.io_type for o in schema.outputs or ()])
    RETURN_NAMES = _from_schema(lambda schema: [o.display_name or o.io_type for o in schema.outputs or ()])
    OUTPUT_TOOLTIPS = _from_schema(lambda schema: [o.tooltip or None for o in schema.outputs or ()])


def overrides(cls, method) -> bool:
    """Whether a node class defines the method itself instead of leaving ComfyNode's placeholder."""
    return getattr(cls, method).__func__ is not getattr(ComfyNode, method).__func__
