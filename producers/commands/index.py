"""`argosy index`: documents in, an index for a retrieval task out."""

from __future__ import annotations

from pathlib import Path

import click

from producers.wire.kinds.retrieval import PIECES


@click.command()
@click.argument("where", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The index's folder."
)
@click.option("-t", "--task", default="embedding", show_default=True, help="The task that gives the vectors.")
@click.option("--pieces", default=PIECES, show_default=True, help="Words and marks in a passage, at most.")
@click.option("--input-column", metavar="NAME", help="Column with the text, where SOURCE is a table.")
@click.option("--id-column", metavar="NAME", help="Column with what a row is called.")
@click.option("--again", is_flag=True, help="Make all vectors anew, though they were made within the last day.")
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
    """Cut documents into passages, have the fleet place them, and write an index that a retrieval task looks into.

    SOURCE is a text file (.txt .md .rst .markdown), a folder of these, or a table as for `argosy submit`, each row a document. The folder must
    lie where the workers read it; they take a new index with their next batch, without a restart. Interrupted, the
    same command goes on where it stopped.

    \b
    argosy index handbook/ --out indexes/handbook
    argosy index faq.csv --id-column question --input-column answer --out indexes/faq
    """
    from producers.client.client import Client
    from producers.documents import read_documents, write_index

    with Client() as client:
        documents = read_documents(where, input_column=input_column, key_column=id_column)
        built = write_index(client, documents, out, task=task, pieces=pieces, again=again)
    click.echo(f"{built.file}: {built.passages:,} passages of {built.documents:,} documents, edition {built.edition}")
