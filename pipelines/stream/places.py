"""How the files of one followed source are called."""

from __future__ import annotations

FILM = "annotated.mp4"
ROWS = "tracks.jsonl"
TABLE = "tracks.parquet"
RESULTS = "results.json"
COCO, MOT, MOTS, MOTS_LABELS, CVAT = "coco.json", "mot.txt", "mots.txt", "labels.txt", "cvat.xml"

ALL = (FILM, ROWS, TABLE, RESULTS, COCO, MOT, MOTS, MOTS_LABELS, CVAT)
"""What a folder of a source may hold, and all that overwriting ever deletes."""
