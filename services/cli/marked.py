"""Parts of a document that are written by a program, between two marks."""


def replaced(document: str, name: str, text: str) -> str:
    """`document` with `text` between the marks of `name`. ValueError when it has not both."""
    start, end = f"<!-- {name} -->\n", f"<!-- end: {name} -->\n"
    before, found, rest = document.partition(start)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"the document has no place for: {name}")
    return before + start + text + end + after
