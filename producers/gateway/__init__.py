"""The HTTP face of a fleet: REST, events, and the shapes of OpenAI's API. Needs ``argosy[gateway]``.

`app.create_app` makes the ASGI application; `argosy gateway` serves it.
"""
