#!/usr/bin/env python3
"""A pack of one stage kind, `csv-summary`: the mean and spread of a column over several CSV files.

Siteline starts it, writes requests to its standard input and reads replies from its standard output, one JSON object a line;
see docs/stage-protocol.md. Nothing but Python's own library is needed.
"""

import csv
import hashlib
import json
import os
import statistics
import sys

PROTOCOL = 2
with open(__file__, "rb") as source:
    # What the code is: a changed line reruns what it made.
    CODE = {"base": hashlib.sha256(source.read()).hexdigest()}

KIND = {
    "name": "csv-summary",
    "summary": "the mean and spread of a column over several CSV files",
    "params": {
        "type": "object",
        "additionalProperties": False,
        "required": ["column"],
        "properties": {
            "column": {"type": "string", "description": "The column."},
            "digits": {"type": "integer", "minimum": 0, "default": 3, "description": "Digits behind the point."},
        },
    },
    # Only files that are named here can change the key.
    "inputs": [{"name": "tables", "role": "plain", "files": ["table.csv"], "many": True, "optional": False}],
    "sources": [],
    "outputs": [{"path": "summary.json", "purpose": "result"}],
    "resources": {"cpu": 1},
    "code": CODE,
}


def say(reply, **fields):
    print(json.dumps({"reply": reply, **fields}), flush=True)


def csv_summary(request):
    column, digits = request["params"]["column"], request["params"]["digits"]
    tables = [i for i in request["inputs"] if i["name"] == "tables"]
    values = []
    for done, table in enumerate(tables, 1):
        with open(table["files"]["table.csv"], newline="") as file:
            for row in csv.DictReader(file):
                if column not in row:
                    point = ", ".join(f"{axis}={value}" for axis, value in table["point"].items())
                    raise ValueError(f"the table of {point} has no column `{column}`; it has {', '.join(row)}")
                values.append(float(row[column]))
        say("progress", done=done, total=len(tables), unit="tables")
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    summary = {"mean": round(statistics.fmean(values), digits), "spread": round(spread, digits), "rows": len(values)}
    with open(os.path.join(request["output_dir"], "summary.json"), "w") as file:
        json.dump(summary, file, sort_keys=True)
    say("metric", name="mean", value=summary["mean"])


def run(request):
    if request["code"]["base"] != CODE["base"]:
        raise ValueError("the pack was changed since the plan was made; run again")
    if request["kind"] != KIND["name"]:
        raise ValueError(f"this pack has no stage kind `{request['kind']}`")
    csv_summary(request)
    say("done", instance=request["instance"], environment={"python": sys.version.split()[0]})


for line in sys.stdin:
    message = json.loads(line)
    try:
        if message["request"] == "describe":
            say("kinds", protocol=PROTOCOL, kinds=[KIND])
        else:
            run(message)
    except Exception as error:
        # One line for the user; whatever goes to standard error is kept in the instance's log.
        say("failed", message=str(error))
