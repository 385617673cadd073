"""Checkpoints from the Hugging Face Hub, through huggingface_hub: its cache (`HF_HOME`), token and progress bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertflow.errors import BertflowError, CheckpointError, NetworkError


def cached(repo: str, revision: str | None) -> Path | None:
    """Return the cached snapshot's folder, whole or not, without a request; None where there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["config.json"]))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        fix = "give an existing folder, a Hub id such as bert-base-cased, or pkg://package/folder"
        raise CheckpointError("neither a folder nor a Hub id", repo, fix) from error


def download(repo: str, revision: str | None, timeout: float) -> Path:
    """Download a checkpoint's config, tokenizer and safetensors weights, and return the snapshot's folder.

    The first request has the deadline `timeout` (seconds) and no retries, so that an unreachable Hub is said at once.

    Raises:
        NetworkError: the Hub cannot be reached or fails.
        CheckpointError: no such repository or revision, or one without safetensors weights.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    try:
        info = HfApi().model_info(repo, revision=revision, timeout=timeout)
        files = _weights_files(repo, [item.rfilename for item in info.siblings or ()])
        return Path(snapshot_download(repo, revision=revision, allow_patterns=files))
    except (HTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise _explain(error, repo, revision) from error


def _weights_files(repo: str, files: list[str]) -> list[str]:
    top = [name for name in files if "/" not in name]
    single = [name for name in top if name == "model.safetensors"]
    shards = [name for name in top if name.startswith("model-") and name.endswith(".safetensors")]
    if not single and not shards:
        fix = "safetensors only: choose a revision that has them, or convert the weights"
        raise CheckpointError("repository has no safetensors weights", repo, fix)
    small = [name for name in top if name.endswith((".json", ".txt", ".model"))]
    return [*small, *(name for name in files if name == "1_Pooling/config.json"), *(single or shards)]


def _explain(error: Exception, repo: str, revision: str | None) -> BertflowError:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"{repo} at {constants.ENDPOINT}"
    if isinstance(error, GatedRepoError):
        return CheckpointError("repository is gated", where, "ask for access on its page and set HF_TOKEN")
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError("no such repository", where, "check the name; a private one needs HF_TOKEN")
    if isinstance(error, RevisionNotFoundError):
        return CheckpointError("no such revision", f"{revision} of {where}", "check model.revision")
    fix = "without a network use model=pretrained alone (packaged weights), a local folder, or what is cached"
    if constants.is_offline_mode():
        return NetworkError("offline mode is on (HF_HUB_OFFLINE) and the checkpoint is not cached", where, fix)
    response: Any = getattr(error, "response", None)
    reason = f"status {response.status_code}" if response is not None else str(error).splitlines()[0]
    return NetworkError(f"the Hub cannot be reached ({reason})", where, fix)
