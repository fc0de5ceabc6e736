"""Documents for retrieval: read, cut into passages, turned into vectors, stored as an index file."""

from producers.documents.building import Built, write_index
from producers.documents.citing import Cited, cite
from producers.documents.passages import Document, passages
from producers.documents.reading import read_documents

__all__ = ["Built", "Cited", "Document", "cite", "passages", "read_documents", "write_index"]
