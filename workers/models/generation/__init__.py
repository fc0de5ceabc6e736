"""Text generation by any decoder of Hugging Face's, requests joining and leaving between its steps; and tasks that are prompts.

In the parent `prompts` makes tokens of texts, messages and templates, and `model` says what is wanted of them. In the device
process `engine` steps: who is in a step says `rota`, the network runs over the keys and values that `memory` holds, and
each row's next token is chosen by `sampling`, under a `grammar` where the answer is JSON, until `writing` sees its end.
"""
