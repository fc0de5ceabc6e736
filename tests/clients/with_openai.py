"""OpenAI's own package: chat, embeddings, files, batches, transcriptions, and errors by its classes."""

import json
import os
import time
from pathlib import Path

import openai
import pytest
from openai.types import Batch, CreateEmbeddingResponse
from openai.types.audio import TranscriptionVerbose
from openai.types.chat import ChatCompletion

client = openai.OpenAI(max_retries=0)
recording = Path(os.environ["RECORDING"])
hello = [{"role": "system", "content": ""}, {"role": "user", "content": "Say hello."}]

answer = client.chat.completions.create(model="chat", messages=hello, max_tokens=8)
ChatCompletion.model_validate(answer.model_dump(), strict=True)
assert answer.choices[0].message.content, answer
assert answer._request_id.startswith("req_"), answer._request_id
nulls = dict.fromkeys(
    ("stop", "seed", "temperature", "top_p", "tools", "n", "logprobs", "stream_options", "response_format")
)
assert client.chat.completions.create(model="chat", messages=hello, max_tokens=8, stream=None, extra_body=nulls).choices
again = [*hello, answer.choices[0].message.model_dump(), {"role": "user", "content": "Again."}]
assert (
    client.chat.completions.create(model="chat", messages=again, max_completion_tokens=4).usage.completion_tokens <= 4
)
chunks = list(
    client.chat.completions.create(
        model="chat", messages=hello, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
)
assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == answer.choices[0].message.content
assert chunks[-1].usage == answer.usage


def refused(call, kind, param, code=None):
    with pytest.raises(kind) as error:
        call()
    assert (error.value.param, code or error.value.code) == (param, error.value.code), str(error.value)
    return str(error.value)


bad = openai.BadRequestError
for name, value in (
    ("max_tokens", 0), ("n", 2), ("tools", [{"type": "function", "function": {"name": "f"}}]), ("min_p", 0.1),
    ("response_format", {"type": "json_object"}), ("logprobs", True), ("temperature", -1), ("reasoning_effort", "high"),
):  # fmt: skip
    body = {name: value}
    refused(lambda: client.chat.completions.create(model="chat", messages=hello, extra_body=body), bad, name)  # noqa: B023
long = [{"role": "user", "content": "word " * 9000}]
overflow = "context_length_exceeded"
refused(lambda: client.chat.completions.create(model="chat", messages=long), bad, "messages", overflow)
refused(
    lambda: client.chat.completions.create(model="chat", messages=hello, max_tokens=10**6), bad, "max_tokens", overflow
)
refused(
    lambda: client.chat.completions.create(model="gpt", messages=hello),
    openai.NotFoundError,
    "model",
    "model_not_found",
)

vectors = client.embeddings.create(model="embedding", input=["A film.", "A book."], dimensions=64)
assert [len(one.embedding) for one in vectors.data] == [64, 64]
CreateEmbeddingResponse.model_validate(vectors.model_dump(), strict=True)
refused(lambda: client.embeddings.create(model="embedding", input=["a", "word " * 3000]), bad, "input[1]", overflow)
refused(lambda: client.embeddings.create(model="embedding", input=["a", "b", ""]), bad, "input[2]")
assert "check_embedding_ctx_length=False" in refused(
    lambda: client.embeddings.create(model="embedding", input=[1, 2]), bad, "input"
)
cut = client.embeddings.create(model="embedding", input=["a", "word " * 3000], extra_body={"truncation": True})
assert cut.usage.prompt_tokens > 500

assert {model.id for model in client.models.list()} == {"embedding", "chat", "transcript", "noted"}

heard = client.audio.transcriptions.create(
    model="transcript", file=recording, response_format="verbose_json", timestamp_granularities=["segment", "word"]
)
TranscriptionVerbose.model_validate(heard.model_dump(exclude={"task"}), strict=True)
assert heard.language == "english"
assert heard.segments[0].tokens
assert heard.segments[0].avg_logprob < 0 < heard.segments[0].compression_ratio
assert heard.words[-1].end <= heard.duration
events = list(client.audio.transcriptions.create(model="transcript", file=recording, stream=True))
assert [one.type for one in events] == ["transcript.text.delta", "transcript.text.done"]
assert events[-1].text == client.audio.transcriptions.create(model="transcript", file=recording).text
refused(lambda: client.audio.transcriptions.create(model="transcript", file=recording, prompt="Jane"), bad, "prompt")
refused(lambda: client.audio.transcriptions.create(model="transcript", file=("a.wav", b"RIFF")), bad, "file")

lines = [
    {
        "custom_id": "good",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "chat", "messages": hello, "max_tokens": 4},
    },
    {
        "custom_id": "bad",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "chat", "messages": hello, "n": 2},
    },
]
content = "\n".join(map(json.dumps, lines)).encode()
refused(
    lambda: client.files.create(file=("in.jsonl", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}),
    bad, "expires_after[anchor]",
)  # fmt: skip
file = client.files.create(file=("in.jsonl", content), purpose="batch")
made = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
expiry = {"anchor": "created_at", "seconds": 3600}
refused(lambda: client.batches.create(**made, output_expires_after=expiry), bad, "output_expires_after")
batch = client.batches.create(**made, metadata={"for": "clients"})
while batch.status not in ("completed", "failed"):
    time.sleep(0.2)
    batch = client.batches.retrieve(batch.id)
Batch.model_validate(batch.model_dump(), strict=True)
good = json.loads(client.files.content(batch.output_file_id).text)
assert (good["custom_id"], good["error"], good["response"]["status_code"]) == ("good", None, 200)
ChatCompletion.model_validate(good["response"]["body"], strict=True)
wrong = json.loads(client.files.content(batch.error_file_id).text)
assert (wrong["error"], wrong["response"]["status_code"]) == (None, 400)
assert wrong["response"]["body"]["error"]["param"] == "n"
assert client.files.delete(file.id).deleted

base = str(client.base_url).removesuffix("/v1/")
lost = refused(
    lambda: client.with_options(base_url=base).chat.completions.create(model="chat", messages=hello),
    openai.NotFoundError,
    None,
)
assert f"{base}/v1" in lost
