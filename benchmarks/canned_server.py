"""A server with almost no cost: nginx, which returns the same answer to every image.

The drawings by which a run proves what a server sees go to a stand-in, which looks at them and counts their tokens.
"""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.processes import stand_in
from stand_in.gateway import PROCESS, nginx
from stand_in.ports import free_port
from vllm_annotate.proof.scenes import MARKS

MODEL = "qwen2.5-vl-canned"
CONFIGURATION = (
    "load_module modules/ngx_http_echo_module.so;"
    + PROCESS
    + """
http {{
    access_log off;
    keepalive_requests 1000000;
    client_max_body_size 64m;
    client_body_buffer_size 16m;  # the largest images: a file on disk would cost more than all the rest
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    default_type application/json;
    server {{
        listen 127.0.0.1:{port};
        location = /health {{ return 200 ''; }}
        location = /version {{ return 200 '{{"version": "canned"}}'; }}
        location = /v1/models {{ return 200 '{models}'; }}
        error_page 418 = @closing;
        error_page 419 = @proof;
        location = /v1/chat/completions {{
            if ($http_connection = close) {{ return 418; }}
            echo_read_request_body;
            echo_exec @read;  # conditions are checked again there, now with the body
        }}
        location @read {{
            if ($request_body ~ "{proof}") {{ return 419; }}
            echo -n '{answer}';
        }}
        location @proof {{ proxy_pass {stand_in}; }}
        # For clients that read until the connection closes and do not know chunked encoding.
        location @closing {{ chunked_transfer_encoding off; echo_read_request_body; echo -n '{answer}'; }}
    }}
}}
"""
)


def canned_answer() -> str:
    """A chat completion with a rationale and five boxes, in vLLM's format."""
    rng = random.Random(0)  # regular boxes would count as a loop and be re-asked
    boxes = [
        [rng.randrange(400), rng.randrange(300), rng.randrange(450, 900), rng.randrange(350, 690)] for _ in range(5)
    ]
    objects = [{"label": f"object {number}", "bbox_2d": box} for number, box in enumerate(boxes)]
    content = json.dumps({"rationale": "Five things stand in a row, left to right. " * 6, "objects": objects})
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 900, "completion_tokens": 250, "total_tokens": 1150}
    answer = {"id": "1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice], "usage": usage}
    return json.dumps(answer)


@contextmanager
def canned_server(folder: Path) -> Iterator[str]:
    """Runs the server; yields its URL. Needs Debian's nginx-light and libnginx-mod-http-echo."""
    port = free_port()
    models = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 8192}]})
    quoted = canned_answer().replace("\\", "\\\\").replace("'", "\\'").replace("$", "")
    configuration = folder / "nginx.conf"
    values = {"folder": folder, "port": port, "models": models, "answer": quoted, "proof": MARKS["en"]}
    with stand_in("--model", MODEL) as looking:
        configuration.write_text(CONFIGURATION.format(**values, stand_in=looking))
        try:
            with nginx(configuration, port) as url:
                yield url
        except FileNotFoundError:
            raise SystemExit("needs nginx: apt-get install nginx-light libnginx-mod-http-echo") from None
