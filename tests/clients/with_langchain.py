"""langchain-openai: chat models and embeddings."""

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import BadRequestError

chat = ChatOpenAI(model="chat", max_tokens=8, temperature=0, max_retries=0)
said = chat.invoke([SystemMessage(""), HumanMessage("Say hello.")])
assert said.content
assert said.usage_metadata["output_tokens"] <= 8
assert "".join(str(chunk.content) for chunk in chat.stream([HumanMessage("Say hello.")]))
assert chat.invoke([HumanMessage("Hello."), AIMessage(""), said, HumanMessage("And?")]).content
assert len(chat.batch(["One.", "Two."])) == 2
assert chat.bind(stop=["."]).invoke("Say hello.").response_metadata["finish_reason"] in ("stop", "length")

embeddings = OpenAIEmbeddings(model="embedding", check_embedding_ctx_length=False, max_retries=0)
assert [len(one) for one in embeddings.embed_documents(["A film.", "A book."])] == [384, 384]
assert len(embeddings.embed_query("A film.")) == 384
small = OpenAIEmbeddings(model="embedding", dimensions=64, check_embedding_ctx_length=False)
assert len(small.embed_query("A film.")) == 64


class TokenIds:
    """The ids that a tokenizer of OpenAI would give; its vocabulary is downloaded, which a test must not do."""

    def encode(self, text: str, **_: object) -> list[int]:
        return [ord(letter) for letter in text]

    encode_ordinary = encode


def by_token_ids() -> OpenAIEmbeddings:
    import tiktoken

    tiktoken.encoding_for_model = tiktoken.get_encoding = lambda *_, **__: TokenIds()
    return OpenAIEmbeddings(model="embedding", max_retries=0)


with pytest.raises(BadRequestError, match="check_embedding_ctx_length=False"):
    by_token_ids().embed_query("A film.")
with pytest.raises(BadRequestError, match="tools: "):
    chat.bind_tools([{"type": "function", "function": {"name": "f", "parameters": {}}}]).invoke("Hi")
