"""Pipelines: steps that feed each other. `pipeline` is what a user writes, `plan` what it means, `selectors` what feeds what.

Workers share this package with producers: whoever stores a result also says which items it makes due.
"""
