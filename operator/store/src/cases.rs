//! Cases: one fault of one blade, open until it is proven fixed.

use std::collections::HashMap;

use whetstone_model::action::Action;
use whetstone_model::ids::{CaseId, Serial};

use crate::db::Store;
use crate::error::StoreError;
use crate::sql::{CHUNK, LINE, WORD, clean, col, sql, word};

/// A case to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCase {
    pub serial: Serial,
    pub code: String,
    pub device: Option<String>,
    /// Reason of the quarantine.
    pub reason: String,
    /// One line for a person.
    pub detail: String,
    pub action: Action,
    pub at_ms: i64,
}

impl Store {
    /// Opens cases in one transaction; answers come in their order, `None` where there is no such blade. While one is open
    /// for the same blade, code and device, that one is answered and not changed.
    pub async fn open_cases(&self, cases: &[NewCase]) -> Result<Vec<Option<CaseId>>, StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            let key = |case: &NewCase| {
                let device = clean(case.device.as_deref().unwrap_or(""), WORD);
                (case.serial.clone(), clean(&case.code, WORD), device)
            };
            let serials: Vec<&Serial> = cases.iter().map(|case| &case.serial).collect();
            let blades = self.places_for_update(&mut db, &serials).await?;
            let known: Vec<&NewCase> =
                cases.iter().filter(|case| blades.contains_key(&case.serial)).collect();
            let mut open = HashMap::with_capacity(known.len());
            for chunk in known.chunks(CHUNK) {
                let mut insert = sql(
                    "INSERT INTO cases (serial, code, device, reason, detail, action, opened_ms) VALUES ",
                );
                insert.rows(chunk, |fields, case| {
                    let (serial, code, device) = key(case);
                    fields.put(serial.as_str()).put(code).put(device).put(clean(&case.reason, WORD));
                    fields.put(clean(&case.detail, LINE)).put(case.action.as_str()).put(case.at_ms);
                });
                insert.push(" ON CONFLICT (serial, code, device) WHERE closed_ms IS NULL DO NOTHING");
                insert.run(&mut db).await?;
                let mut query = sql("SELECT serial, code, device, id FROM cases \
                     WHERE closed_ms IS NULL AND (serial, code, device) IN (VALUES ");
                query.rows(chunk, |fields, case| {
                    let (serial, code, device) = key(case);
                    fields.put(serial.as_str()).put(code).put(device);
                });
                query.push(")");
                for row in query.all(&mut db).await? {
                    let key: (Serial, String, String) = (word(&row, 0)?, col(&row, 1)?, col(&row, 2)?);
                    open.insert(key, CaseId(col(&row, 3)?));
                }
            }
            db.commit().await?;
            Ok(cases.iter().map(|case| open.get(&key(case)).copied()).collect())
        })
        .await
    }

    /// Closes a case. False if it was not open: then nothing changes.
    pub async fn close_case(&self, case: CaseId, why: &str, at_ms: i64) -> Result<bool, StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            let closed =
                sql("UPDATE cases SET closed_ms = $1, close_why = $2 WHERE id = $3 AND closed_ms IS NULL")
                    .bind(at_ms)
                    .bind(clean(why, LINE))
                    .bind(case.0)
                    .run(&mut db)
                    .await?;
            db.commit().await?;
            Ok(closed == 1)
        })
        .await
    }
}
