"""Text generation with any Hugging Face decoder and continuous batching, and tasks defined by a prompt.

In the parent, `prompts` tokenises texts, messages and templates, and `generation_model` builds the requests. In the
device process, `decoding_engine` runs the steps: `step_rota` chooses their rows, `decoder_network` runs over the keys
and values in `key_value_memory`, and `sampling` chooses each row's next token, under a `grammar` if the answer is JSON,
until `writing` detects its end.
"""
