"""Checkpoint: the weights of a trained model, whole and readable without pickle, with a manifest.

    checkpoint/manifest.json          kind `infnet.checkpoint`: config, digest of the schema, the
    step
               network.safetensors    dense parameters and buffers
               tables.safetensors     embedding tables

It stands inside a run directory, which has `schema.json` and `encoder/` beside it.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from infnet.config import InfnetConfig
from infnet.model.recommender import Recommender
from infnet.model.tables import EmbeddingTables
from infnet.schema import Schema
from rayrun import manifest, storage
from rayrun.config import ConfigError, Json, digest_of, validate

KIND = "infnet.checkpoint"
FORMAT_VERSION = 1

CHECKPOINT = "checkpoint"
NETWORK = "network.safetensors"
TABLES = "tables.safetensors"


def schema_digest(schema: Schema) -> str:
    """Digest of a schema, the digest of its fitted encoder included."""
    return digest_of(schema.to_dict())


def write(
    uri: str,
    *,
    config: InfnetConfig,
    schema: Schema,
    network: Mapping[str, Tensor],
    tables: Mapping[str, Tensor] | Path,
    info: Json,
) -> None:
    """Write a checkpoint directory at once: readers see the old one or the new one.

    `tables` is the state of the embedding tables, or a safetensors file of it, which is moved.
    """
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        local = Path(folder)
        save_file(dict(network), local / NETWORK)
        if isinstance(tables, Path):
            shutil.move(tables, local / TABLES)
        else:
            save_file(dict(tables), local / TABLES)
        manifest.write(
            local,
            kind=KIND,
            format_version=FORMAT_VERSION,
            config=config,
            info={**info, "schema_digest": schema_digest(schema)},
        )
        storage.put(local, uri)


def load(directory: str | Path) -> tuple[Recommender, Schema, InfnetConfig]:
    """The trained recommender of a run directory, in `eval()`, with its schema and configuration.

    `directory` is what `infnet train --out` made, or one of its `rivals/<name>`: a path or an
    `s3://` URI. The tables stay on disk and are mapped: only rows that are looked up are read.

    Raises:
        ConfigError: no checkpoint there, a truncated or corrupt file, a newer format, or the
            weights belong to another schema than the one beside them.
    """
    uri = str(directory)
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        local = storage.fetch(storage.join(uri, CHECKPOINT), Path(folder))
        found = manifest.read(str(local), kind=KIND, format_version=FORMAT_VERSION)
        manifest.verify(str(local))
        where = f"{local}/{manifest.FILE}"
        config = validate(InfnetConfig, found.config, where=where)
        described = storage.fetch(storage.join(uri, "schema.json"), Path(folder))
        schema = Schema.read(described)
        # Of the file, not of what was read: a later version may know keys that this one lacks.
        digest = digest_of(json.loads(described.read_bytes()))
        if found.info.get("schema_digest") != digest:
            raise ConfigError(
                f"the checkpoint in {uri} was trained with schema "
                f"{found.info.get('schema_digest')}, {uri}/schema.json is {digest}: it is the "
                "schema of another dataset; put back the schema.json that `infnet train` wrote, "
                "or train again"
            )
        copies = config.model.table_copies(schema)
        tables = EmbeddingTables(schema, copies, empty=True)
        _fill(tables, local / TABLES, mapped=True)
        recommender = Recommender(config.model, schema, tables)
        _fill(recommender.network, local / NETWORK)
    return recommender.eval(), schema, config


def _fill(module: torch.nn.Module, path: Path, *, mapped: bool = False) -> None:
    try:
        module.load_state_dict(load_tensors(path), assign=mapped)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise ConfigError(f"{path} holds the weights of another model: {reason}") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ConfigError: missing, truncated or corrupt.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; the checkpoint is not whole, train again") from None
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"{path} is truncated or corrupt ({error}); restore it or train again"
        ) from error


def load_torch(path: Path) -> Any:
    """The plain data of a `torch.save` file (nothing that runs code).

    Raises:
        ConfigError: missing, truncated or corrupt.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; the checkpoint is not whole, train again") from None
    except Exception as error:  # torch, zipfile and pickle each raise their own
        raise ConfigError(
            f"{path} is truncated or corrupt ({str(error).splitlines()[0]}); restore it or train "
            "again"
        ) from error
