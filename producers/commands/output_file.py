"""The option `--output`: a local file, or a file at a URL that fsspec knows."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import click

from producers.wire.errors import ConfigurationError, InvalidInput

if TYPE_CHECKING:
    from fsspec.spec import AbstractFileSystem


class OutputFile:
    """A local file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def format(self) -> str:
        """The suffix of its name, as ``csv``."""
        return self.path.suffix.lower().lstrip(".")

    def check(self) -> None:
        """Raise InvalidInput now if the place of the file cannot be reached. A local place is tried by writing."""

    @contextmanager
    def placed(self) -> Iterator[Path]:
        """Give the path to write to."""
        yield self.path


class RemoteOutput(OutputFile):
    """A file at a URL. It is written to a temporary file, and sent once that is complete."""

    def __init__(self, url: str) -> None:
        from producers.sources.places import without_query

        self._url, self._shown = url, without_query(url)
        super().__init__(Path(tempfile.gettempdir(), PurePosixPath(self._shown.partition("://")[2]).name))

    def __str__(self) -> str:
        return self._shown

    def check(self) -> None:
        """Raise InvalidInput if the URL cannot be opened, or names a folder."""
        from producers.sources.places import told

        fs, path = self._opened()
        try:
            is_folder = not self.path.name or fs.isdir(path)
        except Exception as error:  # each file system has errors of its own
            problem = f"{self._shown} cannot be reached: {told(error)}"
            raise InvalidInput("output", problem, "check the URL and the credentials") from error
        if is_folder:
            raise InvalidInput("output", f"{self._shown} is a folder", "add the name of a file")

    @contextmanager
    def placed(self) -> Iterator[Path]:
        """Give a local path to write to, and send the file when the block ends.

        Raises ConfigurationError if it cannot be sent; its message names the local file, which stays.
        """
        from producers.sources.places import told

        local = self.path.with_name(f"argosy-{secrets.token_hex(4)}-{self.path.name}")
        try:
            yield local
        except BaseException:
            local.unlink(missing_ok=True)
            raise
        try:
            fs, path = self._opened()
            fs.put_file(str(local), path)
        except Exception as error:  # as above
            raise ConfigurationError(
                f"{self._shown}: cannot be written: {told(error)}; the file is complete in {local}: copy it from there"
            ) from error
        local.unlink()

    def _opened(self) -> tuple[AbstractFileSystem, str]:
        from producers.sources.places import filesystem

        fs, path, _ = filesystem(self._url)
        return fs, path


class _OutputType(click.ParamType[OutputFile]):
    name = "FILE or URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> OutputFile:
        """Return the file that a value of the option names."""
        if isinstance(value, OutputFile):
            return value
        if value.startswith("file://"):
            value = url2pathname(urlsplit(value).path)
        if "://" in value:
            return RemoteOutput(value)
        return OutputFile(click.Path(path_type=Path, dir_okay=False).convert(value, param, ctx))


OUTPUT = _OutputType()
