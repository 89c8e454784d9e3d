//! What was ordered of a run, whatever became of it: a result is held against it.

use whetstone_model::ids::{RunId, Serial};

use crate::db::Store;
use crate::error::StoreError;
use crate::sql::{col, sql, word};

/// The order of a run, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunTerms {
    pub serial: Serial,
    /// TOML, as the agent got it.
    pub suite_text: String,
    pub seed: u64,
    /// False once it has a result, was given up or taken back.
    pub active: bool,
    /// True while its blade has no later one.
    pub last: bool,
}

impl Store {
    /// What was ordered; `None` if there is no such run.
    pub async fn run_terms(&self, run: RunId) -> Result<Option<RunTerms>, StoreError> {
        self.within(async {
            let mut db = self.read().await?;
            let row = sql("SELECT r.serial, r.suite_text, r.seed, r.state, b.last_run \
                 FROM runs r JOIN blades b ON b.serial = r.serial WHERE r.run = $1")
            .bind(run.0)
            .maybe(&mut db)
            .await?;
            let Some(row) = row else { return Ok(None) };
            Ok(Some(RunTerms {
                serial: word(&row, 0)?,
                suite_text: col(&row, 1)?,
                seed: col::<i64>(&row, 2)?.cast_unsigned(),
                active: matches!(col::<&str>(&row, 3)?, "ordered" | "running"),
                last: col::<Option<i64>>(&row, 4)? == Some(run.0),
            }))
        })
        .await
    }
}
