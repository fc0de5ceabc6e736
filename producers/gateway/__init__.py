"""The HTTP API of a fleet: REST, server-sent events, and OpenAI's endpoints. Needs ``argosy[gateway]``.

`app.create_app` makes the ASGI application; `argosy gateway` serves it.
"""
