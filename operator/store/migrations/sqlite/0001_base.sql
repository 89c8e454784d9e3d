-- Schema 1. Times are milliseconds since the Unix epoch. An empty device ('') is the blade as a whole, so that unique
-- keys work (NULLs are never equal).

CREATE TABLE blades (
    serial       TEXT PRIMARY KEY NOT NULL,
    name         TEXT NOT NULL,
    tranche      TEXT,
    rack         TEXT,
    domain       TEXT,
    sku          TEXT,
    phase        TEXT NOT NULL,
    phase_name   TEXT NOT NULL,
    why          TEXT NOT NULL,
    since_ms     BIGINT NOT NULL,
    sequence     BIGINT NOT NULL,
    retested     BIGINT NOT NULL DEFAULT 0,
    passed_ms    BIGINT,
    doubted_ms   BIGINT,
    inconclusive BIGINT NOT NULL DEFAULT 0,
    last_run     BIGINT,
    created_ms   BIGINT NOT NULL
);
CREATE INDEX blades_by_name ON blades (name);

CREATE TABLE places (
    serial  TEXT NOT NULL REFERENCES blades (serial),
    number  BIGINT NOT NULL,
    name    TEXT NOT NULL,
    tranche TEXT,
    rack    TEXT,
    domain  TEXT,
    from_ms BIGINT NOT NULL,
    PRIMARY KEY (serial, number)
);
CREATE INDEX places_by_name ON places (name);

CREATE TABLE transitions (
    serial     TEXT NOT NULL REFERENCES blades (serial),
    sequence   BIGINT NOT NULL,
    from_phase TEXT,
    to_phase   TEXT NOT NULL,
    to_name    TEXT NOT NULL,
    why        TEXT NOT NULL,
    run        BIGINT,
    case_id    BIGINT,
    at_ms      BIGINT NOT NULL,
    PRIMARY KEY (serial, sequence)
);

CREATE TABLE runs (
    run            INTEGER PRIMARY KEY AUTOINCREMENT,
    serial         TEXT NOT NULL REFERENCES blades (serial),
    suite          TEXT NOT NULL,
    suite_text     TEXT NOT NULL,
    budget_ms      BIGINT NOT NULL,
    why            TEXT NOT NULL,
    seed           BIGINT NOT NULL,
    sku            TEXT,
    state          TEXT NOT NULL CHECK (state IN ('ordered', 'running', 'finished', 'lost', 'cancelled')),
    end_why        TEXT,
    created_ms     BIGINT NOT NULL,
    started_ms     BIGINT,
    heard_ms       BIGINT,
    ended_ms       BIGINT,
    progress       TEXT NOT NULL DEFAULT '',
    cohort_outcome TEXT,
    cohort_why     TEXT,
    cohort_ms      BIGINT
);
CREATE INDEX runs_by_serial ON runs (serial, run);
CREATE UNIQUE INDEX runs_one_active ON runs (serial) WHERE state IN ('ordered', 'running');

CREATE TABLE verdicts (
    run      BIGINT PRIMARY KEY NOT NULL REFERENCES runs (run),
    serial   TEXT NOT NULL REFERENCES blades (serial),
    outcome  TEXT NOT NULL CHECK (outcome IN ('pass', 'fail', 'inconclusive')),
    code     TEXT NOT NULL,
    why      TEXT NOT NULL,
    action   TEXT NOT NULL,
    evidence TEXT NOT NULL,
    signer   TEXT NOT NULL,
    sha256   TEXT NOT NULL,
    at_ms    BIGINT NOT NULL
);
CREATE INDEX verdicts_by_serial ON verdicts (serial, run);

-- The files of a result, apart from the verdict so that reading verdicts stays cheap. report and samples: zstd.
CREATE TABLE results (
    run       BIGINT PRIMARY KEY NOT NULL REFERENCES runs (run),
    report    BLOB NOT NULL,
    samples   BLOB NOT NULL,
    manifest  TEXT NOT NULL,
    signature TEXT NOT NULL
);

CREATE TABLE streams (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    serial   TEXT NOT NULL REFERENCES blades (serial),
    name     TEXT NOT NULL,
    instance TEXT NOT NULL,
    max_seq  BIGINT NOT NULL,
    items    BIGINT NOT NULL,
    first_ms BIGINT NOT NULL,
    last_ms  BIGINT NOT NULL,
    UNIQUE (serial, name)
);

-- kind: 1 appeared, 2 cleared, 3 kernel, 4 reading, 5 note. body: the item's JSON; NULL for a reading, whose columns say all.
CREATE TABLE evidence (
    stream      BIGINT NOT NULL REFERENCES streams (id),
    seq         BIGINT NOT NULL,
    at_ms       BIGINT NOT NULL,
    received_ms BIGINT NOT NULL,
    kind        BIGINT NOT NULL,
    code        TEXT NOT NULL,
    device      TEXT NOT NULL,
    value       DOUBLE PRECISION,
    unit        TEXT,
    body        TEXT,
    PRIMARY KEY (stream, seq)
) WITHOUT ROWID;

CREATE TABLE faults (
    serial   TEXT NOT NULL REFERENCES blades (serial),
    code     TEXT NOT NULL,
    device   TEXT NOT NULL,
    source   TEXT NOT NULL CHECK (source IN ('probe', 'kernel')),
    standing BIGINT NOT NULL,
    action   TEXT NOT NULL,
    detail   TEXT NOT NULL,
    since_ms BIGINT NOT NULL,
    stream   BIGINT NOT NULL,
    seq      BIGINT NOT NULL,
    PRIMARY KEY (serial, code, device, source)
);

CREATE TABLE cases (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    serial    TEXT NOT NULL REFERENCES blades (serial),
    code      TEXT NOT NULL,
    device    TEXT NOT NULL,
    reason    TEXT NOT NULL,
    detail    TEXT NOT NULL,
    action    TEXT NOT NULL,
    opened_ms BIGINT NOT NULL,
    closed_ms BIGINT,
    close_why TEXT
);
CREATE INDEX cases_by_serial ON cases (serial, id);
CREATE UNIQUE INDEX cases_one_open ON cases (serial, code, device) WHERE closed_ms IS NULL;

CREATE TABLE tokens (
    sha256        TEXT PRIMARY KEY NOT NULL,
    serial        TEXT NOT NULL REFERENCES blades (serial),
    expires_ms    BIGINT NOT NULL,
    issued_by     TEXT NOT NULL,
    issued_ms     BIGINT NOT NULL,
    used_ms       BIGINT,
    used_instance TEXT,
    used_key      TEXT
);
CREATE INDEX tokens_by_serial ON tokens (serial);

CREATE TABLE identities (
    serial       TEXT PRIMARY KEY NOT NULL REFERENCES blades (serial),
    joined       BIGINT NOT NULL,
    instance     TEXT,
    report_key   TEXT,
    joined_ms    BIGINT,
    conflict     TEXT,
    conflict_ms  BIGINT,
    last_seen_ms BIGINT,
    sku          TEXT,
    gpus         BIGINT NOT NULL DEFAULT 0,
    facts        TEXT,
    stats        TEXT
);

CREATE TABLE certificates (
    cert_serial  TEXT PRIMARY KEY NOT NULL,
    serial       TEXT NOT NULL REFERENCES blades (serial),
    instance     TEXT NOT NULL,
    issued_ms    BIGINT NOT NULL,
    not_after_ms BIGINT NOT NULL,
    revoked_ms   BIGINT
);
CREATE INDEX certificates_by_serial ON certificates (serial);

CREATE TABLE unexpected (
    serial   TEXT PRIMARY KEY NOT NULL,
    what     TEXT NOT NULL,
    first_ms BIGINT NOT NULL,
    last_ms  BIGINT NOT NULL,
    times    BIGINT NOT NULL
);

CREATE TABLE audit (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms BIGINT NOT NULL,
    kind  TEXT NOT NULL,
    who   TEXT NOT NULL,
    what  TEXT NOT NULL
);
