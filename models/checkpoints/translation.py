"""How a published checkpoint spells a model: tables that are read in both directions.

A `Layout` (one `model_type` of Hugging Face) says which field of config.json is which of ours, and
which published tensor holds which of our parameters. Import reads the tables from left to right,
export from right to left. Which fields a file may have, and with which values, its schema says
(models/checkpoints/fields.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from isoflop.models.base import ChannelConfig, MixerConfig
from isoflop.models.checkpoints.fields import Published, shown
from isoflop.models.checkpoints.links import Link, Tensor
from isoflop.models.errors import UserError
from isoflop.models.lm import Block, ModelConfig

Fields = dict[str, Any]  # of a config.json
Pattern = tuple[tuple[str, ...], ...]  # names of each layer's parts


@dataclass(frozen=True)
class Part:
    """A mixer or channel mixer as a family publishes it."""

    kind: type[MixerConfig] | type[ChannelConfig]
    fields: Mapping[str, str]  # published → ours, or several of ours separated by spaces
    prefix: str  # of the tensors, after the layer's
    tensors: Mapping[str, Tensor]  # our names, separated by spaces → published
    fixed: Mapping[str, Any] = field(default_factory=dict)  # ours that no field tells
    axes: Mapping[str, str] = field(default_factory=dict)  # letters of patterns → our sizes
    absent: Callable[[int], Any] | None = None  # width → what tells the fields if no layer has it

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

    `read_pattern` finds the parts of each layer in the fields, and `write_pattern` gives those
    fields back. `plain` and `published` turn the fields as found in files, old and new, into those
    that the tables name, and back into the newest.
    """

    model_type: str
    architecture: str
    schema: type[Published]  # the fields that a file may have
    fields: Mapping[str, str]  # published → ModelConfig's
    parts: Mapping[str, Part]
    read_pattern: Callable[[Fields], Pattern]
    write_pattern: Callable[[Pattern], Fields]
    tensors: Mapping[str, Tensor]  # outside the layers
    layer: str  # prefix of a layer's tensors, with {i}
    norms: tuple[str, ...]  # before each part of a layer
    norm_shift: float = 0.0  # of their scales, see Tensor
    fixed: Mapping[str, Any] = field(default_factory=dict)  # ModelConfig's that no field tells
    plain: Callable[[Fields], Fields] = lambda fields: fields
    published: Callable[[Fields], Fields] = lambda fields: fields
    auto_map: Collection[str] = ()  # published classes that compute the same

    def read(self, config: Fields, most_layers: int | None = None) -> ModelConfig:
        """The model that a config.json describes. UserError naming a field that it cannot be.

        No more than `most_layers` are built, before any is.
        """
        found = self.plain(dict(self.schema.of(self.model_type, self.own(config))))
        depth = found["num_hidden_layers"]
        if most_layers is not None and depth > most_layers:
            raise UserError(
                f"config.json: num_hidden_layers={depth} needs as many tensors, and the weights "
                f"have {most_layers}; compare its config.json with its weights"
            )
        try:
            layers = self.read_pattern(found)
            kinds = {name: self.parts[name].read(found) for name in {n for x in layers for n in x}}
            fields = {ours: found[theirs] for theirs, ours in self.fields.items()}
            blocks = _blocks([kinds[name] for layer in layers for name in layer])
            return ModelConfig(blocks=blocks, **fields, **self.fixed)
        except ValidationError as error:
            told = error.errors()[0]
            rule = told["msg"].removeprefix("Value error, ")
            name = told["loc"][-1] if told["type"] != "value_error" else ""
            raise UserError(f"config.json: {self._theirs(f'{name} {rule}'.strip())}") from None

    def own(self, config: Fields) -> Fields:
        """The fields without those that name code, which must be this family's."""
        architectures, remote = config.get("architectures"), config.get("auto_map")
        if architectures not in (None, [self.architecture]):
            raise UserError(
                f"config.json: architectures={shown(architectures)} is not {self.model_type}'s "
                f"[{self.architecture!r}]; this model cannot be imported"
            )
        named = remote.values() if isinstance(remote, dict) else [remote] if remote else []
        if foreign := [name for name in named if name not in self.auto_map]:
            raise UserError(
                f"config.json: auto_map names code of its own, {shown(foreign[0])}, which may "
                "compute another model; remove auto_map if it computes the published one"
            )
        return {k: v for k, v in config.items() if k not in ("architectures", "auto_map")}

    def _theirs(self, words: str) -> str:
        """A message about our fields under the names that the file has for them."""
        tables = [*(part.fields for part in self.parts.values()), self.fields]
        names = {
            name: theirs for table in tables for theirs, o in table.items() for name in o.split()
        }
        return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), words)

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
        for part in self.parts.values():
            if part.absent is not None:  # told already if a layer has it
                config = part.absent(model.d_model).resolved(model.d_model)
                for theirs, ours in part.fields.items():
                    fields.setdefault(theirs, getattr(config, ours.split()[0]))
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
        try:
            again = self.read(written)
        except UserError as error:
            raise UserError(
                f"a {self.model_type} checkpoint has no place for this model: {error}"
            ) from None
        if difference := _difference(essence(again), essence(model)):
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
