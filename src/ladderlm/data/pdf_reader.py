"""The process in which PDF files are read (pdf.py starts it): a path a line on stdin, a JSON object a line on stdout.

A program of its own that imports nothing of ladderlm: it starts in a tenth of a second and holds nothing else.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys


def limit(memory: int) -> None:
    """No more address space than that, and no dump of it; where the system has such limits."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def read(path: str, most: int) -> dict[str, str]:
    """The text of all pages and the title, or the rule that the file breaks and why."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        return {"rule": "encrypted" if "assword" in str(error) else "not-a-pdf", "why": str(error)}
    pages, length = [], 0
    try:
        title = " ".join(document.get_metadata_value("Title").split())
        for number in range(len(document)):
            page = document[number]
            text = page.get_textpage().get_text_bounded()
            page.close()
            pages.append(cleaned(text))
            if (length := length + len(text)) > most:
                return {"rule": "too-large"}
    except pypdfium2.PdfiumError as error:
        return {"rule": "broken-pdf", "why": str(error)}
    finally:
        document.close()
    return {"text": "\n\n".join(p for p in pages if p), "title": title}


def cleaned(text: str) -> str:
    """A page's text with words that a line end had cut put together (pdfium marks them with U+FFFE or U+0002)."""
    text = re.sub("[\ufffe\x02]\\s*\n?", "", text.replace("\r\n", "\n"))
    return text.replace("\0", "").strip()


def main() -> None:
    limit(int(sys.argv[1]))
    for line in sys.stdin.buffer:
        try:
            answer = read(json.loads(line), int(sys.argv[2]))
        except MemoryError:
            answer = {"rule": "too-large", "why": "reading it takes too much memory"}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
