"""Checkpoints from the Hugging Face Hub, through huggingface_hub: its cache (`HF_HOME`), token and progress bars."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bertflow.errors import BertflowError, CheckpointError, NetworkError
from bertflow_standard.deadline import deadline


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

    All files are of one commit, which the cache learns of when it is whole. They come one after the other in this
    thread, so that Ctrl-C stops them at once; the weights are last.

    Args:
        repo: the Hub id.
        revision: branch, tag or commit; None is the main branch.
        timeout: seconds without a byte from the Hub, or of nothing but failures, after which it is given up.

    Raises:
        NetworkError: the Hub cannot be reached, stalls or fails.
        CheckpointError: no such repository or revision, or one without config or safetensors weights.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    try:
        with deadline(timeout):
            info = HfApi().model_info(repo, revision=revision)
            names = _wanted(repo, [item.rfilename for item in info.siblings or ()])
            paths = [hf_hub_download(repo, name, revision=info.sha) for name in names]
            hf_hub_download(repo, "config.json", revision=revision)  # Notes which commit the name stands for.
            return Path(paths[-1]).parent
    except (HTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise explain(error, repo, revision) from error


def _wanted(repo: str, files: list[str]) -> list[str]:
    top = [name for name in files if "/" not in name]
    single = [name for name in top if name == "model.safetensors"]
    shards = [name for name in top if name.startswith("model-") and name.endswith(".safetensors")]
    if not single and not shards:
        fix = "safetensors only: choose a revision that has them, or convert the weights"
        raise CheckpointError("repository has no safetensors weights", repo, fix)
    if "config.json" not in top:
        raise CheckpointError("repository has no config.json", repo, "choose a repository or revision with one")
    small = [name for name in top if name.endswith((".json", ".txt", ".model")) or name == "README.md"]
    # The stages of a sentence-transformers checkpoint have folders of their own.
    stages = [name for name in files if re.fullmatch(r"[^/]+/config\.json", name)]
    return [*small, *stages, *(single or shards)]


def explain(error: Exception, repo: str, revision: str | None) -> BertflowError:
    """Return the error that one of huggingface_hub ends in."""
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
    return NetworkError(f"the Hub cannot be reached ({reason(error)})", where, fix)


def reason(error: Exception) -> str:
    """Return in a few words what one of huggingface_hub's errors says."""
    response: Any = getattr(error, "response", None)
    said = (getattr(error, "server_message", None) if response is not None else str(error)) or ""
    status = f"status {response.status_code}" if response is not None else ""
    return ": ".join(filter(None, (status, *said.splitlines()[:1]))) or type(error).__name__
