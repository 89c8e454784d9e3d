//! Who may speak for a blade: tokens, instances, certificates; and when each was last heard.

use serde::{Deserialize, Serialize};
use sqlx::AnyConnection;
use whetstone_model::ids::{BladeName, Serial};
use whetstone_model::wire::{AgentUsage, BladeFacts};

use crate::db::Store;
use crate::error::StoreError;
use crate::evidence::close_streams;
use crate::sql::{CHUNK, LINE, WORD, clean, col, from_json, json, sql, word};

/// A one-time token: what is kept of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    pub serial: Serial,
    /// SHA-256 of the token, hex.
    pub sha256: String,
}

/// An attempt to join.
#[derive(Debug, Clone, PartialEq)]
pub struct Join {
    pub serial: Serial,
    pub token_sha256: String,
    pub instance: String,
    /// Fingerprint of the public key that the certificate is asked for.
    pub key_fingerprint: String,
    /// The key that signs reports, 64 hex digits.
    pub report_key: String,
    pub facts: BladeFacts,
}

/// What a token was good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenUse {
    /// The blade is this machine from now on; certificates of another one are revoked.
    Accepted {
        blade: BladeName,
    },
    /// The same machine asks again: its answer was lost.
    Repeated {
        blade: BladeName,
    },
    /// This machine has used it, and is not the blade any more: another one replaced it, or it joined anew with other keys.
    /// What was revoked then stays so.
    Replaced,
    /// Another machine has used it.
    UsedByOther {
        instance: String,
    },
    Unknown,
    Expired,
    /// It was issued for another blade.
    WrongSerial {
        issued_for: Serial,
    },
}

/// Who a blade's agent is.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    pub serial: Serial,
    pub blade: BladeName,
    /// False after a reset, until it joins again.
    pub joined: bool,
    pub instance: Option<String>,
    pub report_key: Option<String>,
    pub joined_ms: Option<i64>,
    /// The boot that its agent last spoke of, where it says one.
    pub boot_id: Option<String>,
    /// Two machines claim the serial: what was seen, and when.
    pub conflict: Option<(String, i64)>,
    pub last_seen_ms: Option<i64>,
    pub facts: Option<BladeFacts>,
    pub stats: Option<AgentStats>,
    /// Serial numbers of its revoked certificates, hex. Of the others an agent may have many, and nobody asks for them.
    pub revoked: Vec<String>,
}

impl Identity {
    /// True if the certificate with this serial number was revoked. One that is not on record is not: after a restore from
    /// yesterday's backup, most are not, and the agents' instances still are.
    pub fn is_revoked(&self, cert_serial: &str) -> bool {
        self.revoked.iter().any(|revoked| revoked == cert_serial)
    }
}

/// Former boots that are remembered of a blade; two machines that take turns are found out with one.
const MAX_BOOTS: usize = 32;

/// What a boot id says of the machine that sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootSeen {
    /// It is the one that was heard last.
    Same,
    /// It was never heard of: the machine was started again. It is the last one now.
    New,
    /// Another one was heard since: two machines speak for this blade. Nothing has changed.
    Returned,
}

/// An agent's last word about itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentStats {
    pub usage: Option<AgentUsage>,
    /// Details that its spool dropped so far.
    pub dropped: u64,
    pub spooled: u64,
    /// Its clock less ours, ms.
    pub skew_ms: i64,
}

/// A sign of life.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub serial: Serial,
    pub at_ms: i64,
    /// Where they are new.
    pub facts: Option<BladeFacts>,
    pub stats: AgentStats,
}

impl Store {
    /// Issues tokens. Answers the serials that are no blade of this site: they got none.
    pub async fn new_tokens(
        &self,
        tokens: &[NewToken],
        expires_ms: i64,
        by: &str,
        at_ms: i64,
    ) -> Result<Vec<Serial>, StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            let mut unknown = Vec::new();
            for token in tokens {
                let made = sql("INSERT INTO tokens (sha256, serial, expires_ms, issued_by, issued_ms) \
                     SELECT $1, serial, $2, $3, $4 FROM blades WHERE serial = $5")
                .bind(token.sha256.as_str())
                .bind(expires_ms)
                .bind(clean(by, WORD))
                .bind(at_ms)
                .bind(token.serial.as_str())
                .run(&mut db)
                .await?;
                if made == 0 {
                    unknown.push(token.serial.clone());
                }
            }
            db.commit().await?;
            Ok(unknown)
        })
        .await
    }

    /// Uses a token up, and makes the machine that has it the blade. A refused attempt changes nothing.
    pub async fn use_token(&self, join: &Join, at_ms: i64) -> Result<TokenUse, StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            let mut query = sql("SELECT serial, expires_ms, used_ms, used_instance, used_key, \
                 (SELECT name FROM blades WHERE blades.serial = tokens.serial), \
                 (SELECT COUNT(*) FROM identities i WHERE i.serial = tokens.serial AND i.joined = 1 \
                 AND i.instance = tokens.used_instance AND i.report_key = $1) FROM tokens WHERE sha256 = $2");
            query.push(self.for_update());
            let query = query.bind(clean(&join.report_key, WORD)).bind(join.token_sha256.as_str());
            let Some(row) = query.maybe(&mut db).await? else {
                return Ok(TokenUse::Unknown);
            };
            let issued_for: Serial = word(&row, 0)?;
            if issued_for != join.serial {
                return Ok(TokenUse::WrongSerial { issued_for });
            }
            let blade: BladeName = word(&row, 5)?;
            // The keys belong to the machine as its state directory does: a copy that changes one is another machine.
            let key = format!("{} {}", join.key_fingerprint, join.report_key);
            if col::<Option<i64>>(&row, 2)?.is_some() {
                let instance = col::<Option<String>>(&row, 3)?.unwrap_or_default();
                let same = instance == join.instance && col::<Option<&str>>(&row, 4)? == Some(key.as_str());
                let still = col::<i64>(&row, 6)? == 1;
                return Ok(match (same, still) {
                    (true, true) => TokenUse::Repeated { blade },
                    (true, false) => TokenUse::Replaced,
                    (false, _) => TokenUse::UsedByOther { instance },
                });
            }
            if col::<i64>(&row, 1)? <= at_ms {
                return Ok(TokenUse::Expired);
            }
            sql("UPDATE tokens SET used_ms = $1, used_instance = $2, used_key = $3 WHERE sha256 = $4")
                .bind(at_ms)
                .bind(clean(&join.instance, WORD))
                .bind(clean(&key, WORD))
                .bind(join.token_sha256.as_str())
                .run(&mut db)
                .await?;
            sql("UPDATE certificates SET revoked_ms = $1 \
                 WHERE serial = $2 AND instance <> $3 AND revoked_ms IS NULL")
            .bind(at_ms)
            .bind(join.serial.as_str())
            .bind(join.instance.as_str())
            .run(&mut db)
            .await?;
            sql("INSERT INTO identities (serial, joined, instance, report_key, joined_ms, last_seen_ms) \
                 VALUES ($1, 1, $2, $3, $4, $5) ON CONFLICT (serial) DO UPDATE SET joined = 1, \
                 instance = excluded.instance, report_key = excluded.report_key, \
                 joined_ms = excluded.joined_ms, last_seen_ms = excluded.last_seen_ms, \
                 boot_id = NULL, former_boots = '[]'")
            .bind(join.serial.as_str())
            .bind(clean(&join.instance, WORD))
            .bind(clean(&join.report_key, WORD))
            .bind(at_ms)
            .bind(at_ms)
            .run(&mut db)
            .await?;
            set_facts(&mut db, &join.serial, &join.facts).await?;
            db.commit().await?;
            Ok(TokenUse::Accepted { blade })
        })
        .await
    }

    /// Who speaks for a blade. `None` if nobody ever did, or there is no such blade.
    pub async fn identity(&self, serial: &Serial) -> Result<Option<Identity>, StoreError> {
        self.within(async {
            let mut db = self.read().await?;
            let row = sql("SELECT b.name, i.joined, i.instance, i.report_key, i.joined_ms, i.conflict, \
                 i.conflict_ms, i.last_seen_ms, i.facts, i.stats, i.boot_id \
                 FROM identities i JOIN blades b ON b.serial = i.serial WHERE i.serial = $1")
            .bind(serial.as_str())
            .maybe(&mut db)
            .await?;
            let Some(row) = row else { return Ok(None) };
            let revoked = sql("SELECT cert_serial FROM certificates \
                 WHERE serial = $1 AND revoked_ms IS NOT NULL ORDER BY cert_serial")
            .bind(serial.as_str())
            .all(&mut db)
            .await?
            .iter()
            .map(|row| col::<String>(row, 0))
            .collect::<Result<Vec<_>, StoreError>>()?;
            Ok(Some(Identity {
                serial: serial.clone(),
                blade: word(&row, 0)?,
                joined: col::<i64>(&row, 1)? == 1,
                instance: col(&row, 2)?,
                report_key: col(&row, 3)?,
                joined_ms: col(&row, 4)?,
                boot_id: col(&row, 10)?,
                conflict: col::<Option<String>>(&row, 5)?.zip(col(&row, 6)?),
                last_seen_ms: col(&row, 7)?,
                facts: col::<Option<&str>>(&row, 8)?.map(from_json).transpose()?,
                stats: col::<Option<&str>>(&row, 9)?.map(from_json).transpose()?,
                revoked,
            }))
        })
        .await
    }

    /// Puts a certificate on record, before it is handed out.
    pub async fn record_certificate(
        &self,
        serial: &Serial,
        cert_serial: &str,
        instance: &str,
        not_after_ms: i64,
        at_ms: i64,
    ) -> Result<(), StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            sql("INSERT INTO certificates (cert_serial, serial, instance, issued_ms, not_after_ms) \
                 VALUES ($1, $2, $3, $4, $5)")
            .bind(clean(cert_serial, WORD))
            .bind(serial.as_str())
            .bind(clean(instance, WORD))
            .bind(at_ms)
            .bind(not_after_ms)
            .run(&mut db)
            .await?;
            db.commit().await?;
            Ok(())
        })
        .await
    }

    /// Marks a blade as claimed by two machines. True if it was not before; the first thing seen stays on record.
    ///
    /// # Errors
    /// Category `conflict` if there is no such blade.
    pub async fn set_conflict(&self, serial: &Serial, what: &str, at_ms: i64) -> Result<bool, StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            let set =
                sql("INSERT INTO identities (serial, joined, conflict, conflict_ms) VALUES ($1, 0, $2, $3) \
                 ON CONFLICT (serial) DO UPDATE SET conflict = excluded.conflict, \
                 conflict_ms = excluded.conflict_ms WHERE identities.conflict IS NULL")
                .bind(serial.as_str())
                .bind(clean(what, LINE))
                .bind(at_ms)
                .run(&mut db)
                .await?;
            db.commit().await?;
            Ok(set == 1)
        })
        .await
    }

    /// Takes note of the boot that a blade's agent speaks of. One of a blade that never joined is as good as new.
    pub async fn boot_seen(&self, serial: &Serial, boot_id: &str) -> Result<BootSeen, StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            let mut query = sql("SELECT boot_id, former_boots FROM identities WHERE serial = $1");
            query.push(self.for_update());
            let Some(row) = query.bind(serial.as_str()).maybe(&mut db).await? else {
                return Ok(BootSeen::New);
            };
            let boot_id = clean(boot_id, WORD);
            let last: Option<String> = col(&row, 0)?;
            if last.as_ref() == Some(&boot_id) {
                return Ok(BootSeen::Same);
            }
            let mut former: Vec<String> = from_json(col(&row, 1)?)?;
            if former.contains(&boot_id) {
                return Ok(BootSeen::Returned);
            }
            former.extend(last);
            former.drain(..former.len().saturating_sub(MAX_BOOTS));
            sql("UPDATE identities SET boot_id = $1, former_boots = $2 WHERE serial = $3")
                .bind(boot_id)
                .bind(json(&former)?)
                .bind(serial.as_str())
                .run(&mut db)
                .await?;
            db.commit().await?;
            Ok(BootSeen::New)
        })
        .await
    }

    /// Forgets who speaks for a blade: its certificates are revoked, its tokens void, its streams closed, a conflict is over. It
    /// has to join again, with a new token. False if there was no identity.
    pub async fn reset_identity(&self, serial: &Serial, at_ms: i64) -> Result<bool, StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            sql("UPDATE certificates SET revoked_ms = $1 WHERE serial = $2 AND revoked_ms IS NULL")
                .bind(at_ms)
                .bind(serial.as_str())
                .run(&mut db)
                .await?;
            sql("DELETE FROM tokens WHERE serial = $1").bind(serial.as_str()).run(&mut db).await?;
            let reset = sql(
                "UPDATE identities SET joined = 0, instance = NULL, report_key = NULL, conflict = NULL, \
                 conflict_ms = NULL, boot_id = NULL, former_boots = '[]' WHERE serial = $1",
            )
            .bind(serial.as_str())
            .run(&mut db)
            .await?;
            close_streams(&mut db, serial).await?;
            db.commit().await?;
            Ok(reset == 1)
        })
        .await
    }

    /// Notes signs of life, in one transaction. Those of blades that have not joined are left out; an older one does not
    /// replace a newer one.
    pub async fn seen(&self, seen: &[Seen]) -> Result<(), StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            // The last word counts; and an UPDATE must not meet a row twice.
            let last: std::collections::BTreeMap<&Serial, &Seen> =
                seen.iter().map(|seen| (&seen.serial, seen)).collect();
            let last: Vec<&Seen> = last.into_values().collect();
            for chunk in last.chunks(CHUNK) {
                let mut rows = Vec::with_capacity(chunk.len());
                for seen in chunk {
                    rows.push((seen, json(&seen.stats)?));
                }
                let mut update = sql("WITH v (serial, at_ms, stats) AS (VALUES ");
                update.rows(rows, |fields, (seen, stats)| {
                    fields.put(seen.serial.as_str()).put(seen.at_ms).put(stats);
                });
                update.push(
                    ") UPDATE identities SET last_seen_ms = v.at_ms, stats = v.stats FROM v \
                     WHERE identities.serial = v.serial \
                     AND (identities.last_seen_ms IS NULL OR identities.last_seen_ms <= v.at_ms)",
                );
                update.run(&mut db).await?;
            }
            // Facts may have come with an earlier one than the last.
            for seen in seen {
                if let Some(facts) = &seen.facts {
                    set_facts(&mut db, &seen.serial, facts).await?;
                }
            }
            db.commit().await?;
            Ok(())
        })
        .await
    }
}

async fn set_facts(db: &mut AnyConnection, serial: &Serial, facts: &BladeFacts) -> Result<(), StoreError> {
    sql("UPDATE identities SET facts = $1, sku = $2, gpus = $3 WHERE serial = $4")
        .bind(json(facts)?)
        .bind(facts.sku.as_deref().map(|sku| clean(sku, WORD)))
        .bind(i64::try_from(facts.gpus.len()).unwrap_or(i64::MAX))
        .bind(serial.as_str())
        .run(db)
        .await?;
    Ok(())
}
