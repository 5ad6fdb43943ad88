"""Reading a config.json: typed fields, the spellings that Hugging Face has had for positions and windows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ladderlm.errors import FormatError
from ladderlm.models.arch import Architecture

SERVED = "serve it elsewhere and use its URL: url#model"
_ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "relu": "relu",
}  # fmt: skip
_SPELLED = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
_LOCAL, _FULL = "sliding_attention", "full_attention"


class Config:
    """A config.json. Missing or misshapen fields are FormatErrors that name them.

    `names` are the tensors beside it, for what only they tell; empty where they are not known.
    """

    def __init__(self, raw: Mapping[str, Any], names: Collection[str] = ()) -> None:
        self.raw, self.names = raw, names
        self.family = str(raw.get("model_type"))

    def get(self, name: str, otherwise: Any = None) -> Any:
        """The field, `otherwise` where it is missing or null."""
        value = self.raw.get(name)
        return otherwise if value is None else value

    def whole(self, name: str, otherwise: int | None = None) -> int:
        value = self.get(name, otherwise)
        if not isinstance(value, int) or isinstance(value, bool):
            raise FormatError(f"{name} must be a whole number, not {value!r}", where="config.json")
        return value

    def number(self, name: str, otherwise: float = 0.0) -> float:
        value = self.get(name, otherwise)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise FormatError(f"{name} must be a number, not {value!r}", where="config.json")
        return float(value)

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self.get(name, {})
        if not isinstance(value, Mapping):
            raise FormatError(f"{name} must be an object, not {value!r}", where="config.json")
        return value

    def activation(self, name: str, otherwise: str) -> str:
        value = self.get(name, otherwise)
        if value not in _ACTIVATIONS:
            raise FormatError(f"the activation {value!r} is not supported", where="config.json", cure=SERVED)
        return _ACTIVATIONS[value]

    def refuse(self, **wrong: Any) -> None:
        """Raises for the first field that holds the value under which we do not know the network."""
        for name, value in wrong.items():
            if self.get(name) == value:
                raise FormatError(f"{self.family} with {name} = {value!r} is not supported", cure=SERVED)

    def rotary(self, head_dim: int, theta: float = 10000.0) -> dict[str, Any]:
        """The rotary fields of an Architecture, from the old spelling (rope_theta, rope_scaling) or the new."""
        new = self.mapping("rope_parameters")
        local = new.get(_LOCAL)
        whole = new.get(_FULL) if _FULL in new else new
        if not isinstance(whole, Mapping) or not isinstance(local or {}, Mapping):
            raise FormatError("rope_parameters must hold objects", where="config.json")
        spec = {**self.mapping("rope_scaling"), **whole}
        kind = spec.pop("rope_type", spec.pop("type", None)) or "default"
        spec.pop("type", None)
        base = spec.pop("rope_theta", None) or self.get("rope_theta") or theta
        share = spec.pop("partial_rotary_factor", None) or self.get("partial_rotary_factor") or 1.0
        local_theta = (local or {}).get("rope_theta") or self.get("rope_local_base_freq") or 0.0
        if not all(isinstance(v, (int, float)) for v in (base, share, local_theta)):
            raise FormatError("rope_theta and partial_rotary_factor must be numbers", where="config.json")
        original = self.get("original_max_position_embeddings")
        if kind in ("longrope", "su", "yarn") and original:
            spec.setdefault("original_max_position_embeddings", original)
        if kind == "default":
            spec = {}
        else:
            spec = {
                "rope_type": "longrope" if kind == "su" else kind,
                **{k: v for k, v in spec.items() if v is not None},
            }
        return {
            "rope_theta": float(base), "rope_scaling": spec, "local_theta": float(local_theta),
            "rotary_dim": 0 if share == 1.0 else int(head_dim * share),
        }  # fmt: skip

    def windows(self, layers: int, otherwise: tuple[bool, ...]) -> tuple[int, ...]:
        """Windows by layer from layer_types, or from `otherwise` (which layers are local); () where none is."""
        size, types = self.get("sliding_window"), self.get("layer_types")
        if not size:
            return ()
        if types is not None:
            if not isinstance(types, list) or len(types) != layers or not set(types) <= {_LOCAL, _FULL}:
                raise FormatError("layer_types must name full_attention or sliding_attention for every layer",
                                  where="config.json", cure=SERVED)  # fmt: skip
            otherwise = tuple(t == _LOCAL for t in types)
        size = self.whole("sliding_window")
        return tuple(size * local for local in otherwise) if any(otherwise) else ()


def rotary_keys(arch: Architecture) -> dict[str, Any]:
    """The rotary fields of a config.json in both spellings, for readers of either."""
    main: dict[str, Any] = {"rope_type": "default", **arch.rope_scaling, "rope_theta": arch.rope_theta}
    keys: dict[str, Any] = {"rope_theta": arch.rope_theta}
    if arch.rope_scaling:
        keys["rope_scaling"] = dict(arch.rope_scaling)
    if arch.rotary_dim:
        share = arch.rotary_dim / arch.head_dim
        keys["partial_rotary_factor"] = main["partial_rotary_factor"] = share
    keys["rope_parameters"] = main
    if arch.local_theta:
        keys["rope_local_base_freq"] = arch.local_theta
        keys["rope_parameters"] = {_FULL: main, _LOCAL: {"rope_type": "default", "rope_theta": arch.local_theta}}
    return keys


def window_keys(arch: Architecture) -> dict[str, Any]:
    """sliding_window and layer_types."""
    size = max(arch.windows, default=0)
    kinds = [_LOCAL if arch.window(i) else _FULL for i in range(arch.layers)]
    return {"sliding_window": size or None, "layer_types": kinds}


def spelled(activation: str) -> str:
    """An activation by Hugging Face's name."""
    return _SPELLED[activation]
