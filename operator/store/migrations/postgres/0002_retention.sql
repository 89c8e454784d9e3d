-- Schema 2: retention. Items of a stream up to floor_seq are known, though their rows may be gone: a replay of what was
-- deleted must not come back as new.
ALTER TABLE streams ADD COLUMN floor_seq BIGINT NOT NULL DEFAULT 0;
CREATE INDEX evidence_by_age ON evidence (kind, received_ms);
CREATE INDEX faults_standing ON faults (serial) WHERE standing = 1;
CREATE INDEX cases_open ON cases (serial) WHERE closed_ms IS NULL;
CREATE INDEX certificates_by_end ON certificates (not_after_ms);

CREATE TABLE marks (
    name  TEXT PRIMARY KEY NOT NULL,
    value BIGINT NOT NULL
);
