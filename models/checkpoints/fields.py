"""What a config.json may say: the fields of a family as one pydantic model.

Every field of a file is declared with its type and range, and used; or declared as `only` the
values at which it changes no logit; or named in `without_effect`, where no value does. Whatever
else is refused by name. Types and ranges are those of transformers' own classes, which are strict.
"""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import Repr
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from isoflop.models.errors import UserError

MOST = 2**31 - 1
Whole = Annotated[int, Field(ge=0, le=MOST)]
Size = Annotated[int, Field(ge=1, le=MOST)]
Depth = Annotated[int, Field(ge=1, le=10_000)]  # layers; no published model has a tenth of them
Positive = Annotated[float, Field(gt=0, le=1e38, allow_inf_nan=False)]  # fits an fp32
Share = Annotated[float, Field(gt=0, le=1)]


def only(*values: Any) -> AfterValidator:
    """A field that must have one of these values, those at which it changes no logit here."""

    def check(value: Any) -> Any:
        alike = [v for v in values if isinstance(v, bool) is isinstance(value, bool) and v == value]
        if not alike:
            raise PydanticCustomError("only", "only {values} is", {"values": _listed(values)})
        return value

    return AfterValidator(check)


SILU = only("silu", "swish")  # two names of one function
Auto = Annotated[Size | None, BeforeValidator(lambda value: None if value == "auto" else value)]


class Declared(BaseModel):
    """Fields by name; a value of another type is refused, never converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Published(Declared):
    """What every family's file may have beside its own fields."""

    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Depth
    max_position_embeddings: Size | None = None  # tokens it was trained on; sizes no tensor
    tie_word_embeddings: bool = False
    is_causal: Annotated[Any, only(True)] = True
    is_decoder: Annotated[Any, only(True, False)] = True
    is_encoder_decoder: Annotated[Any, only(False)] = False
    add_cross_attention: Annotated[Any, only(False)] = False
    cross_attention_hidden_size: Annotated[Any, only(None)] = None
    pruned_heads: Annotated[Any, only({}, None)] = None
    per_layer_config: Annotated[Any, only({}, None)] = None
    quantization_config: Annotated[Any, only(None)] = None
    rope_interleaved: Annotated[Any, only(False)] = False

    without_effect: ClassVar[str] = (
        # names, and what is computed beside the logits
        "_attn_implementation _attn_implementation_autoset _commit_hash _experts_implementation "
        "_flash_attn_2_enabled _name_or_path chunk_size_feed_forward dtype finetuning_task "
        "id2label is_llama_config label2id model_type name_or_path num_labels output_attentions "
        "output_hidden_states output_router_logits prefix pretraining_tp problem_type return_dict "
        "task_specific_params tie_encoder_decoder tokenizer_class torch_dtype torchscript "
        "transformers.js_config transformers_version unsloth_fixed unsloth_version use_bfloat16 "
        "use_cache "
        # training and initial values
        "attention_dropout initializer_range rescale_prenorm_residual residual_in_fp32 "
        "router_aux_loss_coef router_jitter_noise "
        # special tokens, and how text is generated
        "bad_words_ids begin_suppress_tokens bos_token_id decoder_start_token_id "
        "diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size eos_token_id "
        "exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty "
        "max_length min_length no_repeat_ngram_size num_beam_groups num_beams "
        "num_return_sequences output_scores pad_token_id remove_invalid_values "
        "repetition_penalty return_dict_in_generate sep_token_id suppress_tokens temperature "
        "top_k top_p typical_p"
    )

    @classmethod
    def of(cls, model_type: str, config: Mapping[str, Any]) -> Published:
        """The fields of a config.json. Raises UserError naming the first that is not possible."""
        idle = set(cls.without_effect.split())
        told = {name: value for name, value in config.items() if name not in idle}
        try:
            return cls.model_validate(told)
        except ValidationError as error:
            raise UserError(_words(model_type, error.errors()[0])) from None


def _words(model_type: str, error: ErrorDetails) -> str:
    """One line of what pydantic found."""
    name = escaped(".".join(map(str, error["loc"])))
    what = f"{name}={shown(error['input'])}"
    if error["type"] == "missing":
        return f"config.json of a {model_type} model lacks {name}; add it"
    if error["type"] == "extra_forbidden":
        return (
            f"config.json: the field {what} is unknown for {model_type}, so this model cannot be "
            "imported; remove the field if no logit depends on it"
        )
    if error["type"] == "only":
        return (
            f"config.json: {what} is not supported for {model_type}, {error['msg']}; this model "
            "cannot be imported"
        )
    if error["type"] in ("model_type", "model_attributes_type"):
        error["msg"] = "input should be an object"
    rule = error["msg"][0].lower() + error["msg"][1:]
    if error["type"] == "value_error":
        return f"config.json: {error['ctx']['error']}; compare it with the published one"
    return f"config.json: {what} is not possible: {rule}; compare it with the published one"


def shown(value: Any) -> str:
    """A value from a file as a message shows it: escaped, in one line, cut where it is long."""
    return _SHORT.repr(value)


def escaped(name: str) -> str:
    """A name from a file as a message shows it: quoted and cut only where it is not printable."""
    return name if name.isprintable() and len(name) <= 200 else shown(name)


def _listed(values: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, values))


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 3
