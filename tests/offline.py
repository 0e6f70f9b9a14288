"""What W&B's offline file holds: the records that `wandb sync` would upload.

The format is LevelDB's log: blocks of 32 KiB, in them chunks with crc, length and type
(1 whole, 2 first, 3 middle, 4 last); the first block begins with a header of 7 bytes.
"""

import json
import struct
import time

from google.protobuf.message import DecodeError
from wandb.proto import wandb_internal_pb2

BLOCK = 32768


def records(path):
    """All records of a `.wandb` file, in order."""
    data, place, parts = path.read_bytes(), 7, []
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # the rest of a block is padding
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(b"".join(parts))
            parts = []


def settle(folder, seconds=60):
    """Wait until the files of a folder's finished runs are whole: W&B's service writes late."""
    deadline = time.monotonic() + seconds
    for path in (folder / "wandb").glob("offline-run-*/*.wandb"):
        while not ended(path):
            assert time.monotonic() < deadline, f"{path} has no end"
            time.sleep(0.05)


def ended(path):
    """Whether the last record of a file says that its run has ended."""
    try:
        return [record.WhichOneof("record_type") for record in records(path)][-1:] == ["exit"]
    except DecodeError:  # half a record
        return False


def items(found):
    """The updates of a history, config or summary record as a dict."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in found}


def read(folder, run_id):
    """`history`, `summary`, `config`, names with a `maxima` summary, and the `run` itself."""
    known = {"history": [], "summary": {}, "config": {}, "maxima": set(), "run": None}
    for path in sorted((folder / "wandb").glob(f"offline-run-*-{run_id}/*.wandb")):
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                known["history"].append(items(record.history.item))
            elif kind == "summary":
                known["summary"] |= items(record.summary.update)
            elif kind == "run":
                known["run"] = record.run
                known["config"] |= items(record.run.config.update)
            elif kind == "metric" and record.metric.summary.max:
                known["maxima"].add(record.metric.name)
    return known
