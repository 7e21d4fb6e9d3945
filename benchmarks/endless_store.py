"""An S3 server on loopback that has a folder of as many objects as it is told, and can do nothing but list them."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PAGE = 1000  # keys, as S3's


def page(start: int, end: int) -> str:
    keys = "".join(
        f"<Contents><Key>images/{number // PAGE:07}/{number:010}.jpg</Key><Size>80000</Size>"
        f'<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"{number:032x}"</ETag></Contents>'
        for number in range(start, min(start + PAGE, end))
    )
    more = f"<NextContinuationToken>{start + PAGE}</NextContinuationToken>" if start + PAGE < end else ""
    truncated = f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>"
    return f"<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>{truncated}{more}{keys}</ListBucketResult>"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: int

    def do_GET(self) -> None:
        token = parse_qs(urlsplit(self.path).query).get("continuation-token", ["0"])[0]
        body = page(int(token), self.objects).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    """Prints its address, and serves until it is killed."""
    Handler.objects = int(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
