"""An endpoint grader: a web server that scores completions and checks that it was the service that asked.

    GRADER_SECRET="whsec_..." python server.py [PORT]

Standard library only. The score is the share of the words in `item.keywords` that the completion has. It answers both
forms of request, one sample or a batch of them.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_BYTES = 64 << 20
TOLERANCE_S = 300
KEY = base64.b64decode(os.environ["GRADER_SECRET"].removeprefix("whsec_"))


def is_signed(headers, body):
    """Whether the request is from somebody who knows the secret, and is not an old one sent again."""
    timestamp = headers.get("webhook-timestamp", "")
    if not timestamp.isdigit() or abs(time.time() - int(timestamp)) > TOLERANCE_S:
        return False
    signed = f"{headers.get('webhook-id')}.{timestamp}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    # While a secret is being replaced there are two signatures.
    given = headers.get("webhook-signature", "").split()
    return any(hmac.compare_digest(expected.encode(), one.encode()) for one in given)


def score(sample, item):
    """A number for one completion: replace this by what you reward."""
    text = sample["output_text"].lower()
    keywords = item["keywords"]
    return sum(word.lower() in text for word in keywords) / len(keywords)


class Grader(BaseHTTPRequestHandler):
    """Answers POST of {sample, item, trace_id} with {score}, and {samples: [...]} with {scores: [...]}."""

    def do_POST(self):
        length = int(self.headers.get("content-length", 0))
        if length > MAX_BYTES:
            return self.answer(413, {"error": "too long"})
        body = self.rfile.read(length)
        if not is_signed(self.headers, body):
            return self.answer(401, {"error": "the signature is not valid"})
        asked = json.loads(body)
        try:
            if "samples" in asked:
                return self.answer(200, {"scores": [score(one["sample"], one["item"]) for one in asked["samples"]]})
            return self.answer(200, {"score": score(asked["sample"], asked["item"])})
        except (KeyError, TypeError, ZeroDivisionError) as error:  # a 4xx is not asked again, and its text is shown
            return self.answer(422, {"error": f"the item cannot be graded: {error!r}"})

    def answer(self, status, value):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 9000), Grader)
    sys.stdout.write(f"listening on {server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
