"""llama-index: OpenAILike for chat and embeddings."""

import os

from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

where = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
chat = OpenAILike(model="chat", is_chat_model=True, max_tokens=8, temperature=0, max_retries=0, **where)
messages = [ChatMessage(role="system", content=""), ChatMessage(role="user", content="Say hello.")]
said = chat.chat(messages).message.content
assert said
assert [part.message.content for part in chat.stream_chat(messages)][-1] == said
assert chat.complete("Say hello.").text

embeddings = OpenAILikeEmbedding(model_name="embedding", max_retries=0, **where)
assert [len(one) for one in embeddings.get_text_embedding_batch(["A film.", "A book."])] == [384, 384]
assert len(embeddings.get_query_embedding("A film.")) == 384
