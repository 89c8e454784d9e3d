-- Schema 3: two machines with one copied state directory. The boot id that was heard last, and earlier ones (JSON, newest last):
-- one that comes back is a second machine's.
ALTER TABLE identities ADD COLUMN boot_id TEXT;
ALTER TABLE identities ADD COLUMN former_boots TEXT NOT NULL DEFAULT '[]';
