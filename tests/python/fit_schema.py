"""Holds each of a list of JSON values to a JSON Schema: fit_schema.py SCHEMA VALUES."""

import json
import sys

import jsonschema

with open(sys.argv[1]) as schema, open(sys.argv[2]) as values:
    validator = jsonschema.Draft202012Validator(json.load(schema))
    for value in json.load(values):
        for error in validator.iter_errors(value):
            sys.exit(f"{value}: {error.message}")
