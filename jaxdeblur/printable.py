"""Text for terminals: names of files may hold any character."""


def printable(text: str) -> str:
    """With characters escaped that would steer a terminal, or turn text around; lines stay lines."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )
