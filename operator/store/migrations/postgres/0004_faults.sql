-- Schema 4: when a fault was last said. Of an old one, when its item came in; where that is deleted, since when it stands.
ALTER TABLE faults ADD COLUMN last_ms BIGINT NOT NULL DEFAULT 0;
UPDATE faults SET last_ms = COALESCE(
    (SELECT e.received_ms FROM evidence e WHERE e.stream = faults.stream AND e.seq = faults.seq), since_ms);
