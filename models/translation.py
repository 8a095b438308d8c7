"""How a published checkpoint spells a model: tables that are read in both directions.

A `Layout` (one `model_type` of Hugging Face) says which field of config.json is which of ours, and
which published tensor holds which of our parameters. Import reads the tables from left to right,
export from right to left; nothing is told twice. A field that no table mentions must be neutral.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.base import ChannelConfig, MixerConfig
from models.errors import UserError
from models.links import Link, Tensor
from models.lm import Block, ModelConfig

Fields = dict[str, Any]  # of a config.json
Pattern = tuple[tuple[str, ...], ...]  # names of each layer's parts

ANY = object()  # a neutral field's value where none matters
HARMLESS = {  # no logit depends on them
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "label2id",
    "max_position_embeddings",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "rescale_prenorm_residual",
    "residual_in_fp32",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


@dataclass(frozen=True)
class Part:
    """A mixer or channel mixer as a family publishes it."""

    kind: type[MixerConfig] | type[ChannelConfig]
    fields: Mapping[str, str]  # published → ours, or several of ours separated by spaces
    prefix: str  # of the tensors, after the layer's
    tensors: Mapping[str, Tensor]  # our names, separated by spaces → published
    fixed: Mapping[str, Any] = field(default_factory=dict)  # ours that no field tells
    axes: Mapping[str, str] = field(default_factory=dict)  # letters of patterns → our sizes

    @property
    def place(self) -> str:
        return "mixer" if issubclass(self.kind, MixerConfig) else "channel"

    def read(self, published: Fields) -> Any:
        told = {name: published[t] for t, ours in self.fields.items() for name in ours.split()}
        return self.kind(**self.fixed, **told)

    def holds(self, config: Any) -> bool:
        """Whether `config` is of this kind, in what the fields cannot tell."""
        return type(config) is self.kind and all(
            getattr(config, name) == value for name, value in self.fixed.items()
        )

    def links(self, config: Any, place: str, prefix: str, shapes: Mapping) -> Iterator[Link]:
        axes = {letter: getattr(config, size) for letter, size in self.axes.items()}
        for names, tensor in self.tensors.items():
            ours = tuple(f"{place}.{name}" for name in names.split())
            if ours[0] in shapes:  # else an option, as a bias, that this model is without
                experts = range(axes["e"]) if "{e}" in tensor.theirs else range(1)
                theirs = tuple(
                    prefix + self.prefix + name.format(e=e)
                    for e in experts
                    for name in tensor.theirs.split()
                )
                yield Link(ours, theirs, tensor, axes)


@dataclass(frozen=True)
class Layout:
    """A family of checkpoints.

    `read_pattern` finds the parts of each layer in the fields named by `pattern_fields`, and
    `write_pattern` gives those fields back. `plain` and `published` turn the fields as found in
    files, old and new, into those that the tables name, and back into the newest.
    """

    model_type: str
    architecture: str
    fields: Mapping[str, str]  # published → ModelConfig's
    defaults: Mapping[str, Any]  # of fields that a config.json may leave out
    neutral: Mapping[str, Any]  # fields that must have this value, if they are there
    parts: Mapping[str, Part]
    pattern_fields: tuple[str, ...]
    read_pattern: Callable[[Fields], Pattern]
    write_pattern: Callable[[Pattern], Fields]
    tensors: Mapping[str, Tensor]  # outside the layers
    layer: str  # prefix of a layer's tensors, with {i}
    norms: tuple[str, ...]  # before each part of a layer
    norm_shift: float = 0.0  # of their scales, see Tensor
    fixed: Mapping[str, Any] = field(default_factory=dict)  # ModelConfig's that no field tells
    plain: Callable[[Fields], Fields] = lambda fields: fields
    published: Callable[[Fields], Fields] = lambda fields: fields

    def read(self, config: Fields) -> ModelConfig:
        """The model that a config.json describes. UserError naming a field that it cannot be."""
        try:
            found = self.plain({**self.defaults, **config})
            self._refuse_unknown(found)
            layers = self.read_pattern(found)
            parts = [self.parts[name].read(found) for layer in layers for name in layer]
            fields = {ours: found[theirs] for theirs, ours in self.fields.items()}
        except KeyError as error:
            raise UserError(
                f"config.json of a {self.model_type} model lacks {error.args[0]}; add it"
            ) from None
        except TypeError as error:
            raise UserError(
                f"config.json of a {self.model_type} model has a value of a wrong type ({error}); "
                "compare it with a published one"
            ) from None
        return ModelConfig(blocks=_blocks(parts), **fields, **self.fixed)

    def _refuse_unknown(self, found: Fields) -> None:
        known = {*self.fields, *self.pattern_fields, *HARMLESS}.union(
            *(part.fields for part in self.parts.values())
        )
        for name, value in found.items():
            if name in self.neutral:
                if self.neutral[name] is not ANY and value not in (self.neutral[name], None):
                    raise UserError(
                        f"config.json: {name}={value!r} is not supported for {self.model_type}, "
                        f"only {self.neutral[name]!r} is; this model cannot be imported"
                    )
            elif name not in known and value not in (None, False, [], {}):
                raise UserError(
                    f"config.json: the field {name}={value!r} is unknown for {self.model_type}; "
                    "this model cannot be imported"
                )

    def write(self, model: ModelConfig) -> Fields:
        """The config.json of a model. UserError saying what this layout has no place for."""
        fields = {theirs: getattr(model, ours) for theirs, ours in self.fields.items()}
        parts = [(self._name(config, i), config, i) for i, _, config in _parts(model)]
        for name, config, i in parts:
            for theirs, ours in self.parts[name].fields.items():
                for value in (getattr(config.resolved(model.d_model), o) for o in ours.split()):
                    if fields.setdefault(theirs, value) != value:
                        raise UserError(
                            f"{theirs} is one value in a {self.model_type} checkpoint, and "
                            f"this model has {fields[theirs]} and {value} (in block {i})"
                        )
        names, size = [name for name, _, _ in parts], len(self.norms)
        pattern = tuple(tuple(names[i : i + size]) for i in range(0, len(names), size))
        named = {"model_type": self.model_type, "architectures": [self.architecture]}
        try:
            written = self.published(fields | self.write_pattern(pattern)) | named
        except KeyError as error:
            raise UserError(
                f"a {self.model_type} checkpoint has no place for these blocks: they lack "
                f"{error.args[0]!r}"
            ) from None
        written["dtype"] = "float32"
        if difference := _difference(essence(self.read(written)), essence(model)):
            raise UserError(f"a {self.model_type} checkpoint has no place for {difference}")
        return written

    def _name(self, part: Any, block: int) -> str:
        for name, candidate in self.parts.items():
            if candidate.holds(part):
                return name
        raise UserError(
            f"a {self.model_type} checkpoint has no place for the {part.kind} of block {block}"
        )

    def links(self, model: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[Link]:
        """All tensors of a model whose parameters measure `shapes`, each of ours in one link."""
        tensors = dict(self.tensors)
        links: list[Link] = []
        for position, (i, place, config) in enumerate(_parts(model)):
            layer, within = divmod(position, len(self.norms))
            prefix, ours = self.layer.format(i=layer), f"blocks.{i}.{place}"
            norm = prefix + self.norms[within]
            tensors[f"{ours}_norm.scale"] = Tensor(f"{norm}.weight", shift=self.norm_shift)
            tensors[f"{ours}_norm.bias"] = Tensor(f"{norm}.bias")
            part = self.parts[self._name(config, i)]
            links += part.links(config.resolved(model.d_model), ours, prefix, shapes)
        links += [
            Link((name,), (tensor.theirs,), tensor, {})
            for name, tensor in tensors.items()
            if name in shapes
        ]
        if left := set(shapes) - {name for link in links for name in link.ours}:
            raise UserError(f"a {self.model_type} checkpoint has no place for {min(left)}")
        return links


def _parts(model: ModelConfig) -> Iterator[tuple[int, str, Any]]:
    """(block, place, config) of every mixer and channel mixer, in the order of computation."""
    for i, block in enumerate(model.blocks):
        for place, config in (("mixer", block.mixer), ("channel", block.channel)):
            if config is not None:
                yield i, place, config


def _blocks(parts: Sequence[Any]) -> tuple[Block, ...]:
    """Blocks of `parts` in this order: a channel mixer joins the mixer before it."""
    blocks: list[Block] = []
    for part in parts:
        if isinstance(part, MixerConfig):
            blocks.append(Block(mixer=part))
        elif blocks and blocks[-1].channel is None:
            blocks[-1] = Block(mixer=blocks[-1].mixer, channel=part)
        else:
            blocks.append(Block(channel=part))
    return tuple(blocks)


def essence(model: ModelConfig) -> Fields:
    """What the logits depend on: sizes written out, without how they are computed or trained."""
    found = model.model_dump(exclude={"blocks", "dtype", "remat"})
    for i, place, config in _parts(model):
        inner = config.resolved(model.d_model).model_dump()
        found |= {f"blocks.{i}.{place}.{name}": value for name, value in inner.items()}
    how = {"chunk", "block", "balance_weight", "z_weight"}
    return {name: value for name, value in found.items() if name.split(".")[-1] not in how}


def _difference(one: Fields, other: Fields) -> str:
    """The first of the other's values that the one has not."""
    for name, value in other.items():
        if one.get(name) != value:
            return f"{name}={value!r}"
    return ""
