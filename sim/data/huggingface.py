"""Data sets of the Hugging Face hub: a stated number of bytes, streamed once into the cache."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from isoflop.models.errors import UserError
from isoflop.sim.data import cache
from isoflop.sim.data.files import document, join
from isoflop.sim.data.source import DataConfig, StoredTokens
from isoflop.sim.data.tokenizer import BPE_VOCAB_MAX, BPE_VOCAB_MIN, text_tokens

HUB_SECONDS = 3.0  # to answer, before the hub counts as unreachable


class HuggingFace(DataConfig):
    """The first `text_bytes` bytes of UTF-8 text that a hub data set streams, kept in the cache.

    They are downloaded when first opened (`pip install isoflop[hf]`); after that neither package
    nor network is needed. `dataset` may be a local directory. Give `revision` and `digest`
    (SHA-256 of the text) for a run that others can repeat: data sets on the hub change.
    """

    kind: Literal["hugging_face"] = "hugging_face"
    dataset: str
    config: str | None = None
    split: str = "train"
    field: str = "text"
    revision: str | None = None
    text_bytes: PositiveInt = 100_000_000
    bpe_vocab: int | None = Field(None, ge=BPE_VOCAB_MIN, le=BPE_VOCAB_MAX)
    digest: str | None = None

    @property
    def vocab_size(self) -> int:
        return self.bpe_vocab or 256

    def open(self) -> StoredTokens:
        asked = self.model_dump(mode="json", exclude={"bpe_vocab", "digest"})
        name = cache.name("hub", json.dumps(asked, sort_keys=True))
        text, digest = cache.entry(name, self._download)
        if self.digest not in (None, digest):
            raise UserError(
                f"{self.dataset} must have the digest {self.digest} of its run, but has {digest}; "
                f"pin the revision it came from, or delete {cache.folder() / name} to load it again"
            )
        return text_tokens(self.dataset, text, digest, self.bpe_vocab)

    def _download(self) -> Iterator[bytes]:
        try:
            import datasets
        except ImportError:
            raise UserError(
                "Hugging Face data needs the package datasets, which is missing; "
                "install it with `pip install isoflop[hf]`"
            ) from None
        if not Path(self.dataset).is_dir():
            _reach_hub(self.dataset)
        left = self.text_bytes
        try:
            rows = datasets.load_dataset(
                self.dataset,
                self.config,
                split=self.split,
                revision=self.revision,
                streaming=True,
            )
            texts = (
                document(row, self.field, f"{self.dataset}, row {i}") for i, row in enumerate(rows)
            )
            for chunk in join(texts, self.dataset):
                yield chunk[:left].decode(errors="ignore").encode()  # whole characters
                left -= min(len(chunk), left)
                if not left:
                    return
        except UserError:
            raise
        except Exception as error:  # the hub's libraries raise those of three HTTP packages
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"{self.dataset} (config {self.config}, split {self.split}) cannot be streamed: "
                f"{reason}; check the names and the network"
            ) from error
        raise UserError(
            f"text_bytes={self.text_bytes} must be at most the {self.text_bytes - left} bytes that "
            f"{self.dataset} has; ask for fewer"
        )


def _reach_hub(dataset: str) -> None:
    """Raise UserError within HUB_SECONDS if the hub does not answer; the library takes 20 and more.

    A thread, since looking up a name obeys no time-out.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{dataset} is not in the cache and HF_HUB_OFFLINE forbids to load it; unset it"
        )
    answer: list[str] = []

    def ask() -> None:
        try:
            head = urllib.request.Request(constants.ENDPOINT, method="HEAD")
            with urllib.request.urlopen(head, timeout=HUB_SECONDS):
                answer.append("")
        except urllib.error.HTTPError as error:
            error.close()
            answer.append("" if error.code < 500 else str(error))
        except (OSError, ValueError) as error:
            answer.append(str(getattr(error, "reason", error)))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    if answer != [""]:
        reason = answer[0] if answer else f"no answer in {HUB_SECONDS:g} s"
        raise UserError(
            f"{dataset} must be loaded from {constants.ENDPOINT}, which cannot be reached "
            f"({reason}); connect, or use a File or an embedded Corpus"
        )
