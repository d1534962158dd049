"""Pages whose tables are made from measured figures."""


def with_table(page: str, name: str, table: str) -> str:
    """A page with the text between its markers replaced.

    Args:
      page: Markdown with the lines `<!-- NAME table -->` and `<!-- end of NAME table -->`.
      name: of the table.
      table: what belongs between the markers.

    Raises:
      ValueError: the page has no such markers.
    """
    begin, end = f"<!-- {name} table -->", f"<!-- end of {name} table -->"
    if begin not in page or end not in page:
        raise ValueError(f"the page has no {begin} and {end}; add them where the table belongs")
    head, rest = page.split(begin, 1)
    return f"{head}{begin}\n{table}\n{end}{rest.split(end, 1)[1]}"
