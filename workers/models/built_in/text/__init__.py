"""The built-in text models: classification, entities, retrieval and language."""
