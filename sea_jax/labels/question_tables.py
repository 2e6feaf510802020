"""The tables behind the questions that runs ask people, in one SQLite file per work directory."""

from __future__ import annotations

from sea_jax.labels.store import SESSIONS, Layout

FILE = "questions.sqlite"
FIRST, SECOND, TIE, BOTH_BAD, SKIP = VERDICTS = ("first", "second", "tie", "both_bad", "skip")
_TABLES = """
CREATE TABLE questions (
  id INTEGER PRIMARY KEY,
  run TEXT NOT NULL,
  duel INTEGER NOT NULL,            -- id in the run's journal
  prompt TEXT NOT NULL,
  first TEXT NOT NULL,
  second TEXT NOT NULL,
  step INTEGER NOT NULL,            -- of the run; the earliest is handed out first
  uncertainty REAL NOT NULL,        -- of the posterior; within a step the largest is handed out first
  votes INTEGER NOT NULL,           -- verdicts that close it
  offered_at REAL NOT NULL,         -- seconds since 1970, UTC
  closed_at REAL,                   -- it has its verdicts, or was skipped too often
  taken_at REAL,                    -- the run has read them
  withdrawn INTEGER NOT NULL DEFAULT 0   -- the run asks it no more
) STRICT;
CREATE UNIQUE INDEX questions_of_a_run ON questions (run, duel) WHERE NOT withdrawn;
CREATE INDEX open_questions ON questions (step, uncertainty DESC, id)
  WHERE closed_at IS NULL AND NOT withdrawn;
CREATE TABLE verdicts (
  id INTEGER PRIMARY KEY,
  question INTEGER NOT NULL REFERENCES questions,
  annotator TEXT NOT NULL,
  verdict TEXT NOT NULL CHECK (verdict IN ('first', 'second', 'tie', 'both_bad', 'skip')),
  first_on_left INTEGER NOT NULL,
  shown_at REAL NOT NULL,
  given_at REAL NOT NULL,
  seconds REAL NOT NULL,            -- that the annotator's page showed it
  undone_at REAL
) STRICT;
CREATE UNIQUE INDEX verdict_of_an_annotator ON verdicts (question, annotator) WHERE undone_at IS NULL;
CREATE VIEW standing AS SELECT * FROM verdicts WHERE undone_at IS NULL;
CREATE VIEW votes AS SELECT * FROM standing WHERE verdict != 'skip';
CREATE TABLE leases (
  question INTEGER NOT NULL REFERENCES questions,
  annotator TEXT NOT NULL,
  until REAL NOT NULL,
  shown INTEGER NOT NULL,           -- 0: only loaded ahead, so that another may have it
  first_on_left INTEGER NOT NULL,
  since REAL NOT NULL,
  PRIMARY KEY (question, annotator)
) STRICT;
CREATE TABLE budgets (run TEXT PRIMARY KEY, labels INTEGER NOT NULL, since REAL NOT NULL) STRICT;
"""
LAYOUT = Layout("file of questions", 1, _TABLES + SESSIONS, "questions")
