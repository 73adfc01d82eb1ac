"""The processes of one run, on one host or many: they start together, compare what must be alike, and fail together."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Bytes of a complaint, and of a digest, that processes tell each other, and how many digests they compare.
COMPLAINT, DIGEST, MOST_COMPARED = 1000, 8, 128


def start_processes(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Join a run of several processes, on one host or many, before anything else asks for a device.

    `coordinator` is "ADDRESS:PORT" of process 0, the same for all, `processes` says how many there are, and `process`
    which of them this one is, from 0; or it is "auto", where the environment of a cluster (Slurm, Open MPI, Kubernetes,
    a TPU pod) says everything. A ValueError where JAX knows no cluster, or the others cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    spelled = (None, None, None) if coordinator == "auto" else (coordinator, processes, process)
    # Leave SIGTERM to our own handler: JAX's service would take it, and tell nobody.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(*spelled)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"this process cannot join the others by --coordinator {coordinator}: {str(error).splitlines()[0]}"
        ) from None


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def together(
    work: Callable[[], Any],
    sentence: str = "",
    kind: type[Exception] = ValueError,
    *,
    first_alone: bool = False,
    identity: Callable[[Any], Mapping[str, str]] | None = None,
) -> Any:
    """What `work` returns, once it has succeeded in every process; all must call it, and where one fails, all do.

    Args:
        work: done by each process by itself.
        sentence: said before the first line of the first complaint, in an error of this `kind`. Without one, a process
            that fails raises what `work` does, and the others a ValueError of the complaint.
        first_alone: only the first process works; None is returned in the others.
        identity: of what `work` returns, what must be the same everywhere: names and values.
    """
    result, error, complaint, same = None, None, None, dict[str, str]()
    try:
        result = work() if not first_alone or is_first() else None
        if identity is not None and jax.distributed.is_initialized():
            same = {**identity(result)}
    except Exception as caught:
        error, words = caught, str((sentence and getattr(caught, "strerror", None)) or caught).strip()
        complaint = (words or type(caught).__name__).splitlines()[0]
    complaint = agree(complaint, same)
    if error is not None and not sentence:
        raise error
    if complaint:
        raise kind(f"{sentence}: {complaint}" if sentence else complaint) from error
    return result


def agree(complaint: str | None, same: Mapping[str, str] | None = None) -> str | None:
    """The first complaint of any process, or what of `same` differs between them, or None: in every process the same.

    All must call it. Names and values of `same` are compared by what they hash to.
    """
    if not jax.distributed.is_initialized():
        return complaint
    names, same = sorted(same or {}), same or {}
    words = (complaint or "").encode()[:COMPLAINT].ljust(COMPLAINT, b"\0")
    for name in names[:MOST_COMPARED]:
        words += hashlib.blake2b(f"{name}={same[name]}".encode(), digest_size=DIGEST).digest()
    said = everybody(np.frombuffer(words.ljust(COMPLAINT + DIGEST * MOST_COMPARED, b"\0"), np.uint8))
    complaints = [row[row != 0].tobytes().decode(errors="ignore") for row in said[:, :COMPLAINT]]
    if any(complaints):
        return next(filter(None, complaints))
    different = (said != said[0])[:, COMPLAINT:].reshape(len(said), -1, DIGEST).any((0, 2))
    if not different.any():
        return None
    listed = ", ".join(name for name, differs in zip(names, different, strict=False) if differs)
    return f"all processes must be started alike, and they differ in {listed or 'what they compare'}"


def everybody(said: Any) -> np.ndarray:
    """What every process says, stacked; all must call it."""
    # Ask no device how many processes there are: a process that has not joined others may have no working device.
    if not jax.distributed.is_initialized():
        return said[None]
    return np.asarray(multihost_utils.process_allgather(said)).reshape(-1, *said.shape)


def least(number: int | None) -> int | None:
    """The smallest number of any process, None where none has one, in every process; all must call it."""
    if not jax.distributed.is_initialized():
        return number
    # In units of a thousand, for JAX gathers whole numbers of 32 bits.
    thousands = everybody(np.int32(-1 if number is None else np.clip(number // 1000, 0, 2**31 - 1)))
    return 1000 * int(thousands[thousands >= 0].min()) if (thousands >= 0).any() else None


def anywhere(holds: bool) -> bool:
    """Whether something holds in any process, in every process; all must call it."""
    return bool(everybody(np.int32(holds)).any())


def as_first_says(value: Any) -> Any:
    """The value of the first process, of JSON's types, in every process; all must call it."""
    if not jax.distributed.is_initialized():
        return value
    words = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(words.size)))
    return json.loads(multihost_utils.broadcast_one_to_all(np.resize(words, length)).tobytes())
