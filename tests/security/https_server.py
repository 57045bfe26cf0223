"""A server of files that can be told to misbehave."""

import http.server
import ssl
import threading
import time


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files``; ``server.cut`` bytes of an answer are the last before the connection ends."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        name = self.path.partition("?")[0]
        if name in server.moved:
            self.send_response(302)
            self.send_header("Location", server.moved[name])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if server.broken:
            self.send_error(server.broken.pop(0))
            return
        if name not in server.files:
            self.send_error(404)
            return
        self.send_part(server.files[name])

    def send_part(self, content):
        server, begin, asked = self.server, 0, self.headers.get("Range")
        time.sleep(server.delay_s)
        if asked and server.knows_ranges:
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin + server.shift}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if server.says_length:
            self.send_header("Content-Length", str(len(content) - begin))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        self.wfile.write(content[begin:] if cut is None else content[begin : begin + cut])
        if cut is not None or not server.says_length:
            self.close_connection = True

    def log_message(self, *words):
        pass


def serve(certificate):
    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.files, server.moved, server.asked = {}, {}, []
    server.cuts, server.broken, server.delay_s, server.shift = [], [], 0, 0
    server.knows_ranges = server.says_length = True
    server.handle_error = lambda *words: None  # a client that hangs up is what is tested
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server
