-- Schema 5: what an agent was told to be stored of a stream when it was not (an older store was restored): it has to say again what
-- stands, until it was told more. 0: never.
ALTER TABLE streams ADD COLUMN lost_seq BIGINT NOT NULL DEFAULT 0;
