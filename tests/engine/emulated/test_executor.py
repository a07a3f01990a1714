# SPDX-License-Identifier: Apache-2.0
"""The emulated accelerator inside a real vLLM server, over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from mars.profiles import Profile
from mars.testing.server import ApiServer
from mars.traces.content import filler

pytestmark = pytest.mark.vllm

EOS = 2
TOOL_CALL = '<tool_call>\n{"name": "run_tests", "arguments": {"path": "tests"}}\n</tool_call>'
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "run_tests",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
        },
    }
]


class Client:
    """What the tests ask of the server."""

    def __init__(self, session: aiohttp.ClientSession, profile: Profile) -> None:
        self._session = session
        self._model = profile.model

    async def post(self, path: str, **body: Any) -> dict[str, Any]:
        async with self._session.post(path, json=body) as response:
            text = await response.text()
            assert response.status == 200, text
            return json.loads(text)

    async def complete(
        self, prompt: list[int], num_tokens: int, seed: str, **xargs: Any
    ) -> dict[str, Any]:
        body = _script(prompt, num_tokens, seed, **xargs)
        return await self.post("/v1/completions", model=self._model, **body)

    async def stream(self, prompt: list[int], num_tokens: int, seed: str) -> list[int]:
        body = _script(prompt, num_tokens, seed) | {"model": self._model, "stream": True}
        tokens: list[int] = []
        async with self._session.post("/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                event = line.decode().strip().removeprefix("data: ")
                if event and event != "[DONE]":
                    for choice in json.loads(event)["choices"]:
                        tokens += choice["token_ids"]
        return tokens

    async def chat(self, messages: list[dict[str, Any]], **body: Any) -> dict[str, Any]:
        return await self.post("/v1/chat/completions", model=self._model, messages=messages, **body)

    async def device(self) -> dict[str, float]:
        answer = await self.post("/collective_rpc", method="mars_device")
        return answer["results"][0]

    async def metric(self, name: str) -> float:
        async with self._session.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def _script(prompt: list[int], num_tokens: int, seed: str, **xargs: Any) -> dict[str, Any]:
    script = {"mars_reply_tokens": num_tokens, "mars_reply_seed": seed} | xargs
    return {
        "prompt": prompt,
        "max_tokens": num_tokens + 1,
        "return_token_ids": True,
        "vllm_xargs": script,
    }


@pytest.fixture
async def client(server: ApiServer, profile: Profile) -> AsyncIterator[Client]:
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(server.url, timeout=timeout) as session:
        yield Client(session, profile)


async def test_scripted_tokens_come_out_exactly(client: Client) -> None:
    answer = await client.complete(filler("exact", 0, 900), 50, "reply", mars_reply_start=7)
    choice = answer["choices"][0]
    assert choice["token_ids"] == [*filler("reply", 7, 50), EOS]
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 51


async def test_unscripted_reply_is_the_same_each_time_and_fills_max_tokens(client: Client) -> None:
    body = {"model": "qwen3-coder-30b-a3b", "prompt": filler("greedy", 0, 300), "max_tokens": 40}
    first = await client.post("/v1/completions", **body)
    second = await client.post("/v1/completions", **body)
    assert first["choices"][0]["text"] == second["choices"][0]["text"]
    assert first["choices"][0]["finish_reason"] == "length"
    assert first["usage"]["completion_tokens"] == 40


async def test_chat_reply_with_a_tool_call_is_parsed_and_its_next_turn_is_warm(
    client: Client,
) -> None:
    # Filler letters, so that the first prompt spans many blocks.
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Fix the repository. " * 40},
        {"role": "user", "content": "The tests fail. " * 40},
    ]
    first = await client.chat(
        messages, tools=TOOLS, vllm_xargs={"mars_reply_text": f"Let me look.\n{TOOL_CALL}"}
    )
    choice = first["choices"][0]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["content"].strip() == "Let me look."
    assert message["tool_calls"][0]["function"]["name"] == "run_tests"
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"path": "tests"}
    call_id = message["tool_calls"][0]["id"]
    messages += [
        {key: message[key] for key in ("role", "content", "tool_calls")},
        {"role": "tool", "tool_call_id": call_id, "content": "1 failed, 12 passed"},
    ]
    second = await client.chat(
        messages, tools=TOOLS, vllm_xargs={"mars_reply_text": "Done."}, max_tokens=50
    )
    assert second["choices"][0]["message"]["content"] == "Done."
    usage = second["usage"]
    # The whole first prompt and its reply, tool call included, but for the last partial block.
    before = first["usage"]["total_tokens"] - 1
    assert usage["prompt_tokens_details"]["cached_tokens"] >= (before // 16) * 16


async def test_second_turn_finds_prompt_and_reply_in_the_prefix_cache(client: Client) -> None:
    prompt = filler("warm", 0, 3000)
    await client.complete(prompt, 100, "warm-reply")
    grown = [*prompt, *filler("warm-reply", 0, 100), *filler("tool-result", 0, 60)]
    answer = await client.complete(grown, 5, "second")
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 3100 // 16 * 16


async def test_device_time_is_the_cost_model_for_a_lone_request(
    client: Client, profile: Profile
) -> None:
    before = await client.device()
    await client.complete(filler("lone", 0, 10_000), 30, "lone-reply")
    after = await client.device()
    cost, chunk = profile.cost, profile.max_num_batched_tokens
    # Token k of the reply is computed with the prompt and k-1 tokens before it. Scheduling
    # runs one step ahead, so the step after end-of-sequence may be under way already.
    expected = cost.prefill_s(10_000, chunk=chunk)
    expected += sum(cost.decode_s(10_000 + index) for index in range(30))
    extra_s = after["busy_s"] - before["busy_s"] - expected
    steps = after["num_steps"] - before["num_steps"]
    assert steps in {32, 33}
    assert extra_s == pytest.approx((steps - 32) * cost.decode_s(10_030))


async def test_sixteen_streams_get_their_own_tokens(client: Client) -> None:
    prompts = [filler(f"stream-{index}", 0, 500) for index in range(16)]
    replies = await asyncio.gather(
        *(client.stream(prompt, 60, f"reply-{i}") for i, prompt in enumerate(prompts))
    )
    for index, tokens in enumerate(replies):
        assert tokens == [*filler(f"reply-{index}", 0, 60), EOS]


async def test_tokens_are_right_through_chunks_and_preemption(client: Client) -> None:
    """12 requests grow to 42,000 tokens in a pool of 40,000: some lose their KV midway."""
    before = await client.metric("vllm:num_preemptions_total")
    prompts = [filler(f"long-{index}", 0, 3200) for index in range(12)]
    replies = await asyncio.gather(
        *(client.stream(prompt, 300, f"long-reply-{i}") for i, prompt in enumerate(prompts))
    )
    for index, tokens in enumerate(replies):
        assert tokens == [*filler(f"long-reply-{index}", 0, 300), EOS]
    assert await client.metric("vllm:num_preemptions_total") > before


async def test_disconnected_client_frees_its_request(client: Client, profile: Profile) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.stream(filler("gone", 0, 100), 9000, "gone"), 0.5)
    answer = await client.complete(filler("after", 0, 100), 10, "after")
    assert answer["choices"][0]["token_ids"] == [*filler("after", 0, 10), EOS]
    async with asyncio.timeout(30):
        while await client.metric("vllm:num_requests_running"):
            await client.device()


async def test_unreadable_script_is_answered_with_the_reason(client: Client) -> None:
    answer = await client.post(
        "/v1/completions",
        model="qwen3-coder-30b-a3b",
        prompt=filler("bad", 0, 50),
        max_tokens=200,
        vllm_xargs={"mars_reply_tokens": "many"},
    )
    assert "vllm_xargs.mars_reply_tokens = 'many'" in answer["choices"][0]["text"]


async def test_reply_that_breaks_its_grammar_fails_alone(client: Client) -> None:
    """The request fails, the engine goes on; a reply that keeps the form passes."""
    ask = {"role": "user", "content": "Give me JSON."}
    form = {"response_format": {"type": "json_object"}, "max_tokens": 50}
    script = {"mars_reply_text": '{"passed": 12}'}
    with pytest.raises(AssertionError, match="InternalServerError"):
        await client.chat([ask], **form)
    answer = await client.chat([ask], **form, vllm_xargs=script)
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"passed": 12}
