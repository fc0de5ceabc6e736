"""The forwarder of a site: it serves the cascade's tasks, by the site's own models and by the centre's gateway.

docs/decisions/0051-edge.md has the states of an item, and what follows if a part dies.
"""
