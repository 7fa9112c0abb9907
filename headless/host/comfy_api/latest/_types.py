"""Types of node sockets and the inputs and outputs that have them.

A type is a class with a wire name (`io_type`) and two roles, `Input` and `Output`; a role made inside a type knows that
type: `Image.Input("image").io_type == "IMAGE"`. The arguments are those of ComfyUI 0.3.64; newer ones raise TypeError
on purpose.
"""

import copy
from enum import Enum
from typing import Any

import torch


class TypeName(str):
    """A wire name that compares as the host's: "*" equals everything, and a comma list equals its own subsets."""

    def __ne__(self, other):
        if self == "*" or other == "*":
            return False
        if not isinstance(other, str):
            return True
        mine, theirs = frozenset(self.split(",")), frozenset(other.split(","))
        return not (mine <= theirs or theirs <= mine)


class FolderType(str, Enum):
    input = "input"
    output = "output"
    temp = "temp"


class UploadType(str, Enum):
    """Key of the widget setting that adds an upload button to a combo."""

    image = "image_upload"
    audio = "audio_upload"
    video = "video_upload"
    model = "file_upload"


class NumberDisplay(str, Enum):
    number = "number"
    slider = "slider"


class RemoteOptions:
    """A combo whose options come from a route of the server (times in milliseconds)."""

    def __init__(self, route: str, refresh_button: bool, control_after_refresh: str = "first", timeout: int = None,
                 max_retries: int = None, refresh: int = None):
        self.route = route
        self.refresh_button = refresh_button
        self.control_after_refresh = control_after_refresh
        self.timeout = timeout
        self.max_retries = max_retries
        self.refresh = refresh

    def as_dict(self):
        return _given(vars(self))


def _given(settings):
    """The settings that are not None; the others stay out of the node's description."""
    return {key: value for key, value in settings.items() if value is not None}


class _Role:
    Parent: type["ComfyType"] = None

    io_type = property(lambda self: self.Parent.io_type)
    Type = property(lambda self: self.Parent.Type)


class Input(_Role):
    """A socket that takes a value."""

    def __init__(self, id: str, display_name: str = None, optional=False, tooltip: str = None, lazy: bool = None,
                 extra_dict=None):
        self.id, self.display_name, self.tooltip = id, display_name, tooltip
        self.optional, self.lazy = optional, lazy
        self.extra_dict = extra_dict or {}

    def as_dict(self):
        return _given({"display_name": self.display_name, "optional": self.optional, "tooltip": self.tooltip,
                       "lazy": self.lazy}) | _given(self.extra_dict)

    def get_io_type(self):
        return TypeName(self.io_type)


class WidgetInput(Input):
    """An input whose value may also be typed into the node."""

    def __init__(self, id: str, display_name: str = None, optional=False, tooltip: str = None, lazy: bool = None,
                 default: Any = None, socketless: bool = None, widget_type: str = None, force_input: bool = None,
                 extra_dict=None):
        super().__init__(id, display_name, optional, tooltip, lazy, extra_dict)
        self.default, self.widget_type = default, widget_type
        self.socketless, self.force_input = socketless, force_input

    def as_dict(self):
        return super().as_dict() | _given({"default": self.default, "socketless": self.socketless,
                                           "widgetType": self.widget_type, "forceInput": self.force_input})

    def get_io_type(self):
        return super().get_io_type() if self.widget_type is None else self.widget_type


class Output(_Role):
    """A socket that gives a value; without an id it gets an automatic one when the schema is finished."""

    def __init__(self, id: str = None, display_name: str = None, tooltip: str = None, is_output_list=False):
        self.id, self.display_name, self.tooltip = id, display_name, tooltip
        self.is_output_list = is_output_list

    def as_dict(self):
        return _given({"display_name": self.display_name, "tooltip": self.tooltip,
                       "is_output_list": self.is_output_list})

    def get_io_type(self):
        return self.io_type


class ComfyType:
    """Base of all types. `class Image(ComfyTypeIO, io_type="IMAGE")` names the type and gives it roles of its own."""

    io_type: str = None
    Type: Any = Any

    def __init_subclass__(cls, io_type: str = None, **arguments):
        super().__init_subclass__(**arguments)
        if io_type is None:
            return
        cls.io_type = TypeName(io_type)
        for role in ("Input", "Output"):
            declared = getattr(cls, role, None)
            if declared is not None:
                members = {"Parent": cls, "__module__": cls.__module__, "__qualname__": f"{cls.__name__}.{role}"}
                setattr(cls, role, type(role, (declared,), members))


class ComfyTypeI(ComfyType):
    """A type that only has inputs."""

    Input = Input


class ComfyTypeIO(ComfyTypeI):
    """A type that has inputs and outputs."""

    Output = Output


def Custom(io_type: str) -> type[ComfyTypeIO]:
    """A type with a wire name of one's own."""
    return _socket("CustomComfyType", io_type)


def _socket(name, io_type, python_type=Any):
    """A type without a widget."""
    namespace = {"Type": python_type, "__module__": __name__}
    return type(name, (ComfyTypeIO,), namespace, io_type=io_type)


# --- types with a widget ---------------------------------------------------------------------------------------------


class Boolean(ComfyTypeIO, io_type="BOOLEAN"):
    Type = bool

    class Input(WidgetInput):
        def __init__(self, id: str, display_name: str = None, optional=False, tooltip: str = None, lazy: bool = None,
                     default: bool = None, label_on: str = None, label_off: str = None, socketless: bool = None,
                     force_input: bool = None):
            super().__init__(
                id, display_name, optional, tooltip, lazy, default, socketless=socketless, force_input=force_input)
            self.label_on, self.label_off = label_on, label_off

        def as_dict(self):
            return super().as_dict() | _given({"label_on": self.label_on, "label_off": self.label_off})


class Int(ComfyTypeIO, io_type="INT"):
    Type = int

    class Input(WidgetInput):
        def __init__(self, id: str, display_name: str = None, optional=False, tooltip: str = None, lazy: bool = None,
                     default: int = None, min: int = None, max: int = None, step: int = None,
                     control_after_generate: bool = None, display_mode: NumberDisplay = None, socketless: bool = None,
                     force_input: bool = None):
            super().__init__(
                id, display_name, optional, tooltip, lazy, default, socketless=socketless, force_input=force_input)
            self.min, self.max, self.step = min, max, step
            self.control_after_generate, self.display_mode = control_after_generate, display_mode

        def as_dict(self):
            return super().as_dict() | _given({
                "min": self.min, "max": self.max, "step": self.step,
                "control_after_generate": self.control_after_generate,
                "display": self.display_mode.value if self.display_mode else None})


class Float(ComfyTypeIO, io_type="FLOAT"):
    Type = float

    class Input(WidgetInput):
        def __init__(self, id: str, display_name: str = None, optional=False, tooltip: str = None, lazy: bool = None,
                     default: float = None, min: float = None, max: float = None, step: float = None,
                     round: float = None, display_mode: NumberDisplay = None, socketless: bool = None,
                     force_input: bool = None):
            super().__init__(
                id, display_name, optional, tooltip, lazy, default, socketless=socketless, force_input=force_input)
            self.min, self.max, self.step, self.round = min, max, step, round
            self.display_mode = display_mode

        def as_dict(self):
            return super().as_dict() | _given({"min": self.min, "max": self.max, "step": self.step, "round": self.round,
                                               "display": self.display_mode})


class String(ComfyTypeIO, io_type="STRING"):
    Type = str

    class Input(WidgetInput):
        def __init__(self, id: str, display_name: str = None, optional=False, tooltip: str = None, lazy: bool = None,
                     multiline=False, placeholder: str = None, default: str = None, dynamic_prompts: bool = None,
                     socketless: bool = None, force_input: bool = None):
            super().__init__(
                id, display_name, optional, tooltip, lazy, default, socketless=socketless, force_input=force_input)
            self.multiline, self.dynamic_prompts = multiline, dynamic_prompts
            self.placeholder = placeholder

        def as_dict(self):
            return super().as_dict() | _given({"multiline": self.multiline, "placeholder": self.placeholder,
                                               "dynamicPrompts": self.dynamic_prompts})


class Combo(ComfyTypeIO, io_type="COMBO"):
    Type = str

    class Input(WidgetInput):
        """A choice; options and default may be an Enum class and its member."""

        Type = str

        def __init__(self, id: str, options: list[str] | list[int] | type[Enum] = None, display_name: str = None,
                     optional=False, tooltip: str = None, lazy: bool = None, default: str | int | Enum = None,
                     control_after_generate: bool = None, upload: UploadType = None, image_folder: FolderType = None,
                     remote: RemoteOptions = None, socketless: bool = None):
            default = default.value if isinstance(default, Enum) else default
            super().__init__(id, display_name, optional, tooltip, lazy, default, socketless)
            is_enum = isinstance(options, type) and issubclass(options, Enum)
            self.options = [member.value for member in options] if is_enum else options
            self.multiselect, self.control_after_generate = False, control_after_generate
            self.upload, self.image_folder, self.remote = upload, image_folder, remote

        def as_dict(self):
            upload = {self.upload.value: True} if self.upload else {}
            return super().as_dict() | _given({
                "multiselect": self.multiselect, "options": self.options,
                "control_after_generate": self.control_after_generate, **upload,
                "image_folder": self.image_folder.value if self.image_folder else None,
                "remote": self.remote.as_dict() if self.remote else None})

    class Output(Output):
        """A chosen option; its wire type is the list of options, which only combos with the same list accept."""

        def __init__(self, id: str = None, display_name: str = None, options: list[str] = None, tooltip: str = None,
                     is_output_list=False):
            super().__init__(id, display_name, tooltip, is_output_list)
            self.options = options or []

        @property
        def io_type(self):
            return self.options


class MultiCombo(ComfyTypeI, io_type="COMBO"):
    """A choice of any number of options."""

    Type = list[str]

    class Input(Combo.Input):
        def __init__(self, id: str, options: list[str], display_name: str = None, optional=False, tooltip: str = None,
                     lazy: bool = None, default: list[str] = None, placeholder: str = None, chip: bool = None,
                     control_after_generate: bool = None, socketless: bool = None):
            super().__init__(id, options, display_name, optional, tooltip, lazy, default, control_after_generate,
                             socketless=socketless)
            self.multiselect = True
            self.placeholder, self.chip = placeholder, chip

        def as_dict(self):
            return super().as_dict() | _given({"multi_select": self.multiselect, "placeholder": self.placeholder,
                                               "chip": self.chip})


# --- types that only travel over links -------------------------------------------------------------------------------

Image = _socket("Image", "IMAGE", torch.Tensor)
Mask = _socket("Mask", "MASK", torch.Tensor)
Latent = _socket("Latent", "LATENT", dict)
Conditioning = _socket("Conditioning", "CONDITIONING", list)
Sampler = _socket("Sampler", "SAMPLER")
Sigmas = _socket("Sigmas", "SIGMAS", torch.Tensor)
Noise = _socket("Noise", "NOISE")
Guider = _socket("Guider", "GUIDER")
Clip = _socket("Clip", "CLIP")
ControlNet = _socket("ControlNet", "CONTROL_NET")
Vae = _socket("Vae", "VAE")
Model = _socket("Model", "MODEL")
ClipVision = _socket("ClipVision", "CLIP_VISION")
ClipVisionOutput = _socket("ClipVisionOutput", "CLIP_VISION_OUTPUT")
StyleModel = _socket("StyleModel", "STYLE_MODEL")
UpscaleModel = _socket("UpscaleModel", "UPSCALE_MODEL")
Audio = _socket("Audio", "AUDIO", dict)
Video = _socket("Video", "VIDEO")
LoraModel = _socket("LoraModel", "LORA_MODEL", dict)
LossMap = _socket("LossMap", "LOSS_MAP", dict)
Hooks = _socket("Hooks", "HOOKS")
HookKeyframes = _socket("HookKeyframes", "HOOK_KEYFRAMES")
TimestepsRange = _socket("TimestepsRange", "TIMESTEPS_RANGE", tuple)
LatentOperation = _socket("LatentOperation", "LATENT_OPERATION")
AnyType = _socket("AnyType", "*")


class MultiType(ComfyType, io_type="COMFY_MULTITYPED_V3"):
    """An input that takes several types; with an Input as its id it also shows that input's widget."""

    class Input(Input):
        def __init__(self, id: str | Input, types: list[type[ComfyType]], display_name: str = None, optional=False,
                     tooltip: str = None, lazy: bool = None, extra_dict=None):
            self.input_override = copy.copy(id) if isinstance(id, Input) else None
            if self.input_override is not None:
                shown = self.input_override
                id = shown.id
                optional = shown.optional or optional
                tooltip = tooltip if shown.tooltip is None else shown.tooltip
                display_name = display_name if shown.display_name is None else shown.display_name
                lazy = lazy if shown.lazy is None else shown.lazy
                if isinstance(shown, WidgetInput):
                    shown.widget_type = shown.get_io_type()
            super().__init__(id, display_name, optional, tooltip, lazy, extra_dict)
            self._io_types = types

        @property
        def io_types(self):
            return [kind if isinstance(kind, type) else type(kind) for kind in self._io_types]

        def get_io_type(self):
            names = [kind.io_type for kind in self.io_types]
            if self.input_override is not None:
                names.insert(0, self.input_override.get_io_type())
            return ",".join(dict.fromkeys(names))

        def as_dict(self):
            shown = {} if self.input_override is None else self.input_override.as_dict()
            return shown | super().as_dict()
