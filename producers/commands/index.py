"""`argosy index`: make an index for a retrieval task from documents."""

from __future__ import annotations

from pathlib import Path

import click

from producers.wire.command_line import say
from producers.wire.kinds.retrieval import PIECES


@click.command()
@click.argument("where", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the index."
)
@click.option("-t", "--task", default="embedding", show_default=True, help="The task that computes the vectors.")
@click.option("--pieces", default=PIECES, show_default=True, help="The most words and marks in a passage.")
@click.option("--input-column", metavar="NAME", help="Column with the text, if SOURCE is a table.")
@click.option("--id-column", metavar="NAME", help="Column with the name of each row's document.")
@click.option("--again", is_flag=True, help="Compute all vectors again, even if they are less than a day old.")
def index(
    where: tuple[str, ...],
    *,
    out: Path,
    task: str,
    pieces: int,
    input_column: str | None,
    id_column: str | None,
    again: bool,
) -> None:
    """Cut documents into passages, compute their vectors, and write an index for a retrieval task.

    SOURCE is a text file (.txt .md .rst .markdown), a folder of such files, or a table as for `argosy submit`, with a
    document per row. The workers must be able to read the index folder. They load a new index with their next batch,
    without a restart. After an interruption the same command resumes.

    \b
    argosy index handbook/ --out indexes/handbook
    argosy index faq.csv --id-column question --input-column answer --out indexes/faq
    """
    from producers.client.client import Client
    from producers.documents import read_documents, write_index

    with Client() as client:
        documents = read_documents(where, input_column=input_column, key_column=id_column)
        built = write_index(client, documents, out, task=task, pieces=pieces, again=again)
    say(f"{built.file}: {built.passages:,} passages of {built.documents:,} documents, edition {built.edition}")
