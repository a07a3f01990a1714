# SPDX-License-Identifier: Apache-2.0
"""What vLLM's states of a request mean for its turn."""

from __future__ import annotations

from vllm.v1.request import Request, RequestStatus


def finish_reason(request: Request) -> str:
    """Why the turn of a finished request ended, as its event says it."""
    # Stop strings are matched in the API server and arrive here as aborts.
    params = request.sampling_params
    if request.status == RequestStatus.FINISHED_ABORTED:
        stopped = params is not None and params.stop and request.num_output_tokens > 0
        return "stop" if stopped else "abort"
    return str(request.get_finished_reason() or "stop")


def lacks_grammar(request: Request) -> bool:
    """Whether it waits for its grammar to be compiled, or has one that cannot be.

    Memory has no part in that: vLLM skips the first and fails the second, when asked.
    """
    if request.status != RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
        return False
    wanted = request.structured_output_request
    return wanted is None or wanted.grammar is None or isinstance(wanted.grammar, Exception)
