"""The engines that the programme is run on, one file each."""

from __future__ import annotations

from tests.proof.engines.log import LogStore
from tests.proof.subject import Subject

ENGINES: dict[str, Subject] = {engine.name: engine for engine in (LogStore(),)}
