"""Documents that questions are answered from: read, cut into passages, placed by their meaning, kept as one index file."""

from producers.documents.building import Built, write_index
from producers.documents.citing import Cited, cite
from producers.documents.passages import Document, passages
from producers.documents.reading import read_documents

__all__ = ["Built", "Cited", "Document", "cite", "passages", "read_documents", "write_index"]
