"""litellm: chat, embeddings, transcriptions, files and batches, and its exceptions."""

import json
import os
import time
from pathlib import Path

import litellm
import pytest

litellm.suppress_debug_info = True
where = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
hello = [{"role": "system", "content": ""}, {"role": "user", "content": "Say hello."}]

answer = litellm.completion(model="openai/chat", messages=hello, max_tokens=8, **where)
assert answer.choices[0].message.content
streamed = litellm.completion(
    model="openai/chat", messages=hello, max_tokens=8, stream=True, stream_options={"include_usage": True}, **where
)
assert (
    "".join(one.choices[0].delta.content or "" for one in streamed if one.choices) == answer.choices[0].message.content
)
assert litellm.completion(model="hosted_vllm/chat", messages=hello, max_tokens=4, **where).choices[0].message.content
again = [*hello, answer.choices[0].message.model_dump(), {"role": "user", "content": "Again."}]
assert litellm.completion(model="openai/chat", messages=again, max_tokens=4, **where).usage.completion_tokens <= 4

with pytest.raises(litellm.ContextWindowExceededError):
    litellm.completion(model="openai/chat", messages=[{"role": "user", "content": "word " * 9000}], **where)
with pytest.raises(litellm.BadRequestError, match=r"n:\ "):
    litellm.completion(model="openai/chat", messages=hello, n=2, **where)
no_v1 = where | {"api_base": where["api_base"].removesuffix("/v1")}
with pytest.raises(litellm.NotFoundError, match="base_url"):
    litellm.completion(model="openai/chat", messages=hello, **no_v1)

vectors = litellm.embedding(model="openai/embedding", input=["A film.", "A book."], **where)
assert [len(one["embedding"]) for one in vectors.data] == [384, 384]
litellm.embedding(model="openai/embedding", input=["A film."], encoding_format=None, **where)
with pytest.raises(litellm.ContextWindowExceededError, match=r"input\[1\]"):
    litellm.embedding(model="openai/embedding", input=["A film.", "word " * 3000], **where)

with Path(os.environ["RECORDING"]).open("rb") as file:
    heard = litellm.transcription(model="openai/transcript", file=file, response_format="verbose_json", **where)
assert heard.text
assert heard["language"] == "english"

lines = [
    {"custom_id": f"r{number}", "method": "POST", "url": "/v1/embeddings", "body": {"model": "embedding", "input": "x"}}
    for number in range(3)
]
content = ("in.jsonl", "\n".join(map(json.dumps, lines)).encode())
file = litellm.create_file(file=content, purpose="batch", custom_llm_provider="openai", **where)
batch = litellm.create_batch(
    completion_window="24h", endpoint="/v1/embeddings", input_file_id=file.id, custom_llm_provider="openai", **where
)
while batch.status not in ("completed", "failed"):
    time.sleep(0.2)
    batch = litellm.retrieve_batch(batch_id=batch.id, custom_llm_provider="openai", **where)
output = litellm.file_content(file_id=batch.output_file_id, custom_llm_provider="openai", **where)
assert [json.loads(line)["custom_id"] for line in output.text.splitlines()] == ["r0", "r1", "r2"]
